"""A dual-stream network: Swin and ViT side by side, a graph over their patches, attention over
regions."""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn

SWIN, VIT = "swin_tiny_patch4_window7_224", "deit_tiny_patch16_224"
WIDTH = 384  # of a region's features


class NeighbourGraph(nn.Module):
    """One graph convolution over tokens ``(N, T, C)``, to the same shape.

    Each token is joined to the ``neighbours`` other tokens of its image with the largest cosine
    similarity, ties included, and gets GELU(W [token, mean of its neighbours]) added (the mean
    aggregator of GraphSAGE, Hamilton et al. 2017, arXiv:1706.02216, algorithm 1, with a residual).
    """

    def __init__(self, width: int, neighbours: int = 8):
        super().__init__()
        self.neighbours = neighbours
        self.norm, self.update = nn.LayerNorm(width), nn.Linear(2 * width, width)
        self.act = nn.GELU()

    def forward(self, tokens: Tensor) -> Tensor:
        own = self.norm(tokens)
        around = self.adjacency(own).to(own) @ own
        return tokens + self.act(self.update(torch.cat([own, around], -1)))

    def adjacency(self, tokens: Tensor) -> Tensor:
        """Weights ``(N, T, T)`` of each token's neighbours, rows that sum to 1, zero on the
        diagonal."""
        # autocast leaves double precision alone; in half precision many neighbours would tie
        double = tokens.detach().double()
        rows = nn.functional.normalize(double, dim=-1)
        # not rows.mT: ONNX Runtime up to 1.25 at least cannot multiply by a transpose in float64
        columns = nn.functional.normalize(double.mT, dim=-2)
        similarity = (rows @ columns).float()
        itself = torch.eye(tokens.shape[1], dtype=torch.bool, device=tokens.device)
        similarity = similarity.masked_fill(itself, -2.0)
        count = min(self.neighbours, tokens.shape[1] - 1)
        least = similarity.topk(count, dim=-1).values[..., -1:]
        joined = (similarity >= least).float()
        return joined / joined.sum(-1, keepdim=True)


class AttentionPool(nn.Module):
    """Tokens ``(N, T, C)`` to their mean ``(N, C)`` with learnt weights (Ilse et al. 2018,
    arXiv:1802.04712, equations 7 and 8)."""

    def __init__(self, width: int, hidden: int = 128):
        super().__init__()
        self.score = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, 1))

    def forward(self, tokens: Tensor) -> Tensor:
        return (self.score(tokens).softmax(1) * tokens).sum(1)


class MeanPool(nn.Module):
    """Tokens ``(N, T, C)`` to their mean ``(N, C)``."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.mean(1)


class DualStream(nn.Module):
    """The teacher of arXiv:2512.21372: a Swin and a ViT read the same image; their patches are
    nodes of a graph, regions are weighed by attention.

    Images ``(N, 3, S, S)`` to logits ``(N, num_classes)``; S is a multiple of 32. The paper names
    these parts. Ours: sizes and wiring. Both streams are tiny ones of timm. Patches are compared at
    one 16th of the image's side, where a region joins the Swin's third stage and the ViT's last
    tokens. After the graph (``graph``) and the pooling of regions (``attention``, else their mean),
    the classifier also sees what each stream says of the whole image.
    """

    # facts for tables, as a method states them
    title, paper = "a teacher of two streams and a graph", "arXiv:2512.21372"
    idea = (
        "Two networks, a Swin and a ViT, read the same image. A graph joins alike patches, "
        "attention weighs the regions, and the whole teaches a Tiny-ViT by soft targets."
    )
    equation = (
        r"z_i' = z_i + \mathrm{GELU}\Big(W \Big[z_i,\ \frac{1}{|N(i)|} \sum_{j \in N(i)}"
        r" z_j\Big]\Big) \\ a = \mathrm{softmax}_i(s(z_i')), \quad"
        r" p_t = \mathrm{softmax}\Big(h\Big(\sum_i a_i z_i'\Big)\Big)"
    )
    reported = "accuracies of .9978 and .9928 with soft targets; no control is known here"
    reported_on = "endoscopy"

    def __init__(
        self, num_classes: int, image_size: int, graph: bool = True, attention: bool = True
    ):
        super().__init__()
        if image_size % 32:
            raise ValueError(
                f"the two streams share a grid at multiples of 32 px, not {image_size}"
            )
        # windows of 7 cells at 224 px, fewer at smaller sizes, as timm fits published weights
        window = image_size // 32
        self.swin = timm.create_model(SWIN, num_classes=0, img_size=image_size, window_size=window)
        self.vit = timm.create_model(VIT, num_classes=0, img_size=image_size)
        self.side = image_size // 16
        wide = self.swin.feature_info[2]["num_chs"] + self.vit.embed_dim
        self.join = nn.Linear(wide, WIDTH)
        self.graph = NeighbourGraph(WIDTH) if graph else nn.Identity()
        # a grid (N, h, w, C): where class activation maps are read
        self.regions = nn.LayerNorm(WIDTH)
        self.pool = AttentionPool(WIDTH) if attention else MeanPool()
        self.head = nn.Linear(WIDTH + self.swin.num_features + self.vit.num_features, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        whole, (patches,) = self.swin.forward_intermediates(images, indices=[2])
        tokens = self.vit.forward_features(images)
        first = self.vit.num_prefix_tokens
        joined = self.join(torch.cat([patches.flatten(2).transpose(1, 2), tokens[:, first:]], -1))
        regions = self.regions(self.graph(joined).unflatten(1, (self.side, self.side)))
        pooled = self.pool(regions.flatten(1, 2))
        return self.head(torch.cat([pooled, whole.mean((1, 2)), tokens[:, 0]], -1))

    def get_classifier(self) -> nn.Module:
        """The layer that answers with classes."""
        return self.head
