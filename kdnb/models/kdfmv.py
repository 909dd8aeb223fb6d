"""Paper B's student, as its text and as its published code describe it."""

from __future__ import annotations

from torch import Tensor, nn


class KDFMV(nn.Module):
    """Paper B's student: 3×3 convolutions with ReLU and max pooling, then 512-256-128 fully
    connected units.

    With ``convolutions=5`` the network of the text (14,578,884 parameters at 224 px and 4 classes),
    with 8 that of the published code (9,861,828): three more convolutions of 512 channels, the last
    of them added to the pooled output of the sixth, and dropout of 0.5, 0.4 and 0.3 after the
    hidden units, of which the text says nothing. Images ``(N, 3, image_size, image_size)`` to
    logits ``(N, num_classes)``.
    """

    def __init__(self, num_classes: int, image_size: int, convolutions: int):
        super().__init__()
        widths = [3, 32, 64, 128, 256, 512, 512, 512, 512][: convolutions + 1]
        self.convs = nn.ModuleList(
            nn.Conv2d(inner, out, 3, padding=1)
            for inner, out in zip(widths, widths[1:], strict=False)
        )
        # modules of their own, not functions: explanations hook them
        self.acts = nn.ModuleList(nn.ReLU() for _ in self.convs)
        round_up = convolutions == 8
        self.pools = nn.ModuleList(
            nn.MaxPool2d(2, ceil_mode=round_up and number > 4)
            for number in range(7 if round_up else 5)
        )
        side = image_size
        for _ in range(5):
            side //= 2
        if convolutions == 8:
            side = (side + 3) // 4  # two more poolings that round up
        layers: list[nn.Module] = []
        for inner, out, drop in ((512 * side * side, 512, 0.5), (512, 256, 0.4), (256, 128, 0.3)):
            layers += [
                nn.Linear(inner, out),
                nn.ReLU(),
                nn.Dropout(drop if convolutions == 8 else 0.0),
            ]
        self.head = nn.Sequential(*layers, nn.Linear(128, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                # as Keras, in which the published code is written; with torch's own defaults these
                # networks do not start
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map, before the last pooling."""
        for conv, act, pool in zip(self.convs[:4], self.acts, self.pools, strict=False):
            x = pool(act(conv(x)))
        x = self.acts[4](self.convs[4](x))
        if len(self.convs) == 8:
            x = self.pools[5](self.acts[5](self.convs[5](self.pools[4](x))))
            x = x + self.acts[7](self.convs[7](self.acts[6](self.convs[6](x))))
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pools[-1](self.forward_features(x)).flatten(1))
