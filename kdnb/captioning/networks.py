"""Networks that write reports: an image encoder, a query transformer and a small decoder (BLIP-2,
Li et al. 2023, arXiv:2301.12597; R6, arXiv:2306.05642)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdnb import device, extras, files
from kdnb.captioning.settings import TUNES
from kdnb.captioning.texts import END, LONGEST, PAD, START
from kdnb.models.maps import NoMap
from kdnb.models.zoo import Classifier

peft = extras.late("peft")
transformers = extras.late("transformers")

DROPOUT = 0.1
RANK = 8  # of the low-rank updates (Hu et al. 2022, arXiv:2106.09685)


@dataclass(frozen=True)
class Size:
    """Width, attention heads and layers of a decoder and its query transformer, and the number of
    learnt queries."""

    width: int
    heads: int
    layers: int
    queries: int


# ours: small enough for two cores; R6 joins EVA-ViT-g and ChatGLM-6B
SIZES = {"large": Size(96, 4, 2, 12), "small": Size(48, 2, 1, 6)}


class Block(nn.Module):
    """One layer of the query transformer: queries look at each other, then at the image."""

    def __init__(self, size: Size):
        super().__init__()
        width, heads = size.width, size.heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.among = nn.MultiheadAttention(width, heads, DROPOUT, batch_first=True)
        self.across = nn.MultiheadAttention(width, heads, DROPOUT, batch_first=True)
        self.feed = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(DROPOUT)
        )

    def forward(self, queries: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        own = self.norms[0](queries)
        queries = queries + self.among(own, own, own, need_weights=False)[0]
        seen, weights = self.across(self.norms[1](queries), cells, cells)
        queries = queries + seen
        return queries + self.feed(self.norms[2](queries)), weights


class QueryTransformer(nn.Module):
    """Learnt queries that read an encoder's map ``(N, C, h, w)`` by cross-attention."""

    def __init__(self, size: Size, channels: int, cells: int, layers: int = 2):
        super().__init__()
        self.project = nn.Linear(channels, size.width)
        self.before = nn.LayerNorm(channels)  # maps of networks differ in scale
        self.places = nn.Parameter(0.02 * torch.randn(cells, size.width))
        self.queries = nn.Parameter(0.02 * torch.randn(size.queries, size.width))
        self.blocks = nn.ModuleList(Block(size) for _ in range(layers))
        self.after = nn.Linear(size.width, size.width)

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """What the queries read ``(N, Q, W)``, and how they share their attention among the cells,
        the mean over layers ``(N, Q, h·w)``."""
        cells = self.project(self.before(maps.flatten(2).transpose(1, 2))) + self.places
        queries, shares = self.queries.expand(len(maps), -1, -1), []
        for block in self.blocks:
            queries, weights = block(queries, cells)
            shares.append(weights)
        return self.after(queries), torch.stack(shares).mean(0)


def decoder(size: Size, words: int) -> nn.Module:
    """A GPT-2 of ``transformers`` with random weights for ``words`` tokens. Input and output tokens
    have weights of their own, because a checkpoint holds no tensor twice."""
    transformers.logging.set_verbosity_error()  # it warns of a mask that is given
    config = transformers.GPT2Config(
        vocab_size=words,
        n_positions=LONGEST + size.queries,
        n_embd=size.width,
        n_layer=size.layers,
        n_head=size.heads,
        resid_pdrop=DROPOUT,
        embd_pdrop=DROPOUT,
        attn_pdrop=DROPOUT,
        bos_token_id=START,
        eos_token_id=END,
        pad_token_id=PAD,
        tie_word_embeddings=False,
        attn_implementation="eager",  # the only one that gives its attention
    )
    return transformers.GPT2LMHeadModel(config)


class Writer(nn.Module):
    """A decoder behind the slots of ``queries``: blank ones are zeros, so that it writes without an
    image."""

    def __init__(self, inner: nn.Module, size: Size):
        super().__init__()
        self.inner, self.size = inner, size

    def forward(self, tokens: Tensor, seen: Tensor | None = None) -> Tensor:
        """Logits ``(N, T, V)`` of each next token of ``tokens`` ``(N, T)``; ``seen`` ``(N, Q, W)``
        is what the queries read."""
        return self.run(tokens, seen).logits[:, self.size.queries :]

    def run(self, tokens: Tensor, seen: Tensor | None = None, attention: bool = False):
        """The decoder's whole output, whose positions start with the Q slots."""
        prefix = self.prefix(len(tokens), seen)
        known = self.inner.get_input_embeddings()(tokens)
        inputs = torch.cat([prefix.to(known), known], 1)
        return self.inner(inputs_embeds=inputs, use_cache=False, output_attentions=attention)

    def prefix(self, count: int, seen: Tensor | None) -> Tensor:
        """The slots ``(N, Q, W)``."""
        if seen is not None:
            return seen
        place = device.of(self.inner)
        return torch.zeros(count, self.size.queries, self.size.width, device=place)

    @torch.no_grad()
    def write(self, count: int, seen: Tensor | None = None) -> Tensor:
        """Tokens ``(N, T)`` of greedy decoding, without the start and up to the end of the longest;
        ``seen`` is ``(N, Q, W)``."""
        tokens = torch.full((count, 1), START, device=device.of(self.inner))
        known = self.inner.get_input_embeddings()(tokens)
        inputs = torch.cat([self.prefix(count, seen).to(known), known], 1)
        return self.inner.generate(
            inputs_embeds=inputs,
            attention_mask=torch.ones(inputs.shape[:2], dtype=torch.int64, device=inputs.device),
            max_new_tokens=LONGEST - 1,
            do_sample=False,
        )


def maps_of(encoder: Classifier, images: Tensor) -> Tensor:
    """The map ``(N, C, h, w)`` of the encoder's CAM layer for ``(N, 3, S, S)`` images in [0, 1].

    Raises :class:`~kdnb.models.maps.NoMap` for a network whose layer gives none.
    """
    kept: list[Tensor] = []
    # a copy, because a later layer may write into its input
    hook = encoder.cam_module().register_forward_hook(lambda m, i, o: kept.append(o.clone()))
    try:
        encoder(images)
    finally:
        hook.remove()
    maps = encoder.cam_reshape(kept[-1]).float()
    if maps.ndim != 4:
        raise NoMap(f"{encoder.name} has no map at {encoder.cam_layer}: choose another network")
    return maps


class Captioner(nn.Module):
    """Encoder, query transformer and writer; ``tune`` says which of them are trained (a key of
    :data:`kdnb.captioning.settings.TUNES`).

    Ours: all sizes, an encoder that is trained on labels and keeps the statistics of its batch
    norms, a decoder that is trained on text alone, a tenth of the learning rate for both, and the
    distillation of a small captioner by the soft targets of each token.
    """

    title = "reports from an image encoder, a query transformer and a language model"
    paper = "Yang et al. 2023, arXiv:2306.05642"
    idea = (
        "Learnt queries read the image and stand before the words of a language model; the parts "
        "that are trained decide how true the reports are."
    )
    equation = (
        r"\mathcal{L} = \alpha\, \mathrm{CE} + (1 - \alpha)\, T^2\,"
        r" \mathrm{KL}(p_T \,\|\, p_S)"
    )
    reported = "unfreezing the encoder, then tuning few parameters of the language model, is best"
    reported_on = "ImageCLEFmedical Caption 2023 (4th of 13 by BERTScore, 2nd by ROUGE-1)"
    command = "python -m kdnb.run 14 -p dataset covid_ct -p split official -p vocabulary chest"

    def __init__(self, encoder: Classifier, writer: Writer, tune: str):
        super().__init__()
        self.parts = TUNES[files.lookup(tune, TUNES, "tune")]
        self.encoder, self.writer, self.tune = encoder, writer, tune
        blank = torch.zeros(1, 3, encoder.image_size, encoder.image_size)
        with torch.no_grad():
            channels, height, width = maps_of(encoder.eval(), blank.to(encoder.mean)).shape[1:]
        self.grid = height, width
        self.bridge = QueryTransformer(writer.size, channels, height * width)
        self._freeze()

    def _freeze(self) -> None:
        self.encoder.requires_grad_(self.parts.encoder)
        self.writer.requires_grad_(self.parts.decoder == "all")
        if self.parts.decoder == "last":
            for part in (self.writer.inner.transformer.h[-1], self.writer.inner.transformer.ln_f):
                part.requires_grad_(True)
        if self.parts.decoder == "lora":
            config = peft.LoraConfig(
                r=RANK, lora_alpha=2 * RANK, target_modules=["c_attn"], fan_in_fan_out=True
            )
            with warnings.catch_warnings():  # it asks transformers for names that become others
                warnings.simplefilter("ignore", FutureWarning)
                self.writer.inner = peft.get_peft_model(self.writer.inner, config)

    @property
    def name(self) -> str:
        """Its encoder and how it is trained."""
        return f"{self.encoder.name} captioner ({self.tune})"

    @property
    def kept(self) -> nn.ModuleDict:
        """The modules that a checkpoint holds: a frozen encoder is a run of its own."""
        kept = {"bridge": self.bridge, "writer": self.writer}
        return nn.ModuleDict(kept | ({"encoder": self.encoder} if self.parts.encoder else {}))

    def train(self, mode: bool = True) -> Captioner:
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, maps: Tensor, tokens: Tensor) -> Tensor:
        """Logits ``(N, T, V)`` of each next token of ``tokens`` ``(N, T)``; ``maps`` are those of
        :func:`maps_of`."""
        return self.writer(tokens, self.bridge(maps)[0])


def token_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Mean cross-entropy, in nats a token, of logits ``(N, T, V)`` with the tokens ``(N, T)`` that
    follow; padding does not count."""
    return F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten(), ignore_index=PAD
    )


def parameters_of(modules: Sequence[nn.Module], trained: bool = False) -> int:
    """Parameters of modules, all or those that are trained."""
    every = {id(p): p for module in modules for p in module.parameters()}
    return sum(p.numel() for p in every.values() if p.requires_grad or not trained)
