"""Depthwise convolution that trains fast on a CPU.

Ours because oneDNN has no fast kernel for some of its gradients: that of a 5x5 or 7x7 kernel's
weights, and in bfloat16 that of the input at stride 2. Both are written here as what oneDNN is fast
at; ``outputs/benchmarks/distillation.json`` has OFA-595's training step with either. On a GPU, and
where nothing is learnt, torch's own layer does the work.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DepthwiseConv2d(nn.Conv2d):
    """A convolution of each channel with its own square kernel of odd side, padded to keep the
    side: ``(N, C, H, W)`` to ``(N, C, ceil(H / stride), ceil(W / stride))``, without bias. The same
    function and gradients as ``nn.Conv2d``."""

    def __init__(self, channels: int, kernel: int, stride: int = 1):
        super().__init__(
            channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False
        )

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or x.device.type != "cpu" or not torch.is_grad_enabled():
            return super().forward(x)
        weight = self.weight
        if torch.is_autocast_enabled("cpu"):
            x, weight = (value.to(torch.get_autocast_dtype("cpu")) for value in (x, weight))
        return _Depthwise.apply(x, _what_meets_the_image(weight, x), self.stride[0])


def _what_meets_the_image(weight: Tensor, x: Tensor) -> Tensor:
    """The centre of the kernels: what lies further out than the image is wide meets nothing but
    padding."""
    edge = max(0, weight.shape[-1] // 2 - (max(x.shape[-2:]) - 1))
    return weight[..., edge : weight.shape[-2] - edge, edge : weight.shape[-1] - edge]


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, stride):
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, len(weight))

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        ours = weight.shape[-1] > min(3, *x.shape[-2:])
        wide = (
            ctx.stride > 1 and x.dtype != torch.float64
        )  # at stride 2 only float32 has a fast kernel
        given = [value.float() if wide else value for value in (grad, x, weight)]
        wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[1] and not ours, False]
        side = weight.shape[-1] // 2
        by_x, by_weight, _ = torch.ops.aten.convolution_backward(
            *given, None, [ctx.stride] * 2, [side] * 2, [1, 1], False, [0, 0], len(weight), wanted
        )
        if ours and ctx.needs_input_grad[1]:
            by_weight = _by_weight(grad, x, weight.shape[-1], ctx.stride)
        return *(value if value is None else value.to(x.dtype) for value in (by_x, by_weight)), None


def _by_weight(grad: Tensor, x: Tensor, kernel: int, stride: int) -> Tensor:
    """Gradient of the weights ``(C, 1, K, K)``: each image's channel correlated with its own
    gradient, summed over images.

    As one depthwise convolution of N·C channels in which the gradients are the kernels; the stride
    becomes a dilation.
    """
    count, channels = x.shape[:2]
    each, as_kernels = x.reshape(1, -1, *x.shape[2:]), grad.reshape(-1, 1, *grad.shape[2:])
    found = F.conv2d(each, as_kernels, None, 1, kernel // 2, stride, count * channels)[
        ..., :kernel, :kernel
    ]
    return found.reshape(count, channels, kernel, kernel).sum(0)[:, None]
