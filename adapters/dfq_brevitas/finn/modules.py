"""Exact equivalents, built from FINN's operations, of operations that FINN has no hardware for."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dfq_brevitas.framework import QuantTensor, ScalingImplType, quant_nn, scaled_int

_SELECTING_WEIGHTS = scaled_int.Int8WeightPerTensorFloat.let(
    bit_width=2,  # -1, 0 and 1 at a scale of exactly 1
    narrow_range=True,
    scaling_impl_type=ScalingImplType.CONST,
    scaling_init=1.0,
)


class ChannelSelection(quant_nn.QuantConv2d):  # type: ignore[misc]  # Brevitas is untyped
    """A 1x1 convolution that strides over a map and pads its channels with zero channels.

    It replaces the shortcut of ResNets with option A (He et al. 2015, section 3.3), which slices and pads. Its weights
    are 0 and 1 at a scale of 1, so the output is on the input's grid. They are a buffer, so they are neither trained
    nor corrected.

    Args:
        channels: channels of the input `(batch, channels, height, width)`.
        before: zero channels before them.
        after: zero channels after them.
        stride: vertical and horizontal step.
    """

    def __init__(self, channels: int, before: int, after: int, stride: tuple[int, int]) -> None:
        super().__init__(
            channels, before + channels + after, 1, stride=stride, bias=False, weight_quant=_SELECTING_WEIGHTS
        )
        del self.weight
        selection = torch.zeros(before + channels + after, channels, 1, 1)
        selection[before : before + channels, :, 0, 0] = torch.eye(channels)
        self.register_buffer("weight", selection)

    def forward(self, inputs: Any) -> Any:
        """Select the channels; a quantized tensor keeps its scale."""
        if isinstance(inputs, QuantTensor):
            return inputs.set(value=super().forward(inputs.value))
        return super().forward(inputs)


class Averaging(nn.Conv2d):
    """A depthwise convolution whose weights are all 1/(height x width) of its kernel: an average pooling.

    It is a separate class because its weights need two bits, regardless of the recipe.
    """


class QuantAveraging(quant_nn.QuantConv2d):  # type: ignore[misc]  # Brevitas is untyped
    """The quantized version of `Averaging`."""


def averaging(
    channels: int, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int] = (0, 0)
) -> Averaging:
    """Return the convolution that computes `nn.AvgPool2d(kernel, stride, padding)` on maps with `channels` channels.

    >>> maps = torch.randn(2, 3, 8, 8)
    >>> bool(torch.allclose(averaging(3, (2, 4), (2, 4))(maps), nn.AvgPool2d((2, 4))(maps), atol=1e-6))
    True
    """
    convolution = Averaging(channels, channels, kernel, stride, padding, groups=channels, bias=False)
    with torch.no_grad():
        convolution.weight.fill_(1 / (kernel[0] * kernel[1]))
    return convolution


class Concatenation(nn.Module):
    """Concatenates tensors whose quantizers share one scale; the result keeps the quantization of the first."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, *inputs: Any) -> Any:
        """Concatenate along the given axis."""
        values = [part.value if isinstance(part, QuantTensor) else part for part in inputs]
        joined = torch.cat(values, self.dim)
        return inputs[0].set(value=joined) if isinstance(inputs[0], QuantTensor) else joined
