"""Fake quantization with a learned scale, and QDrop's random mixture of float and quantized values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

NORM = 2.4
"""Exponent of the error that the best scale minimizes; above 2, clipping large weights counts more."""

_RATIOS = 71
_SMALLEST_RATIO = 0.3


class _FakeQuantize(torch.autograd.Function):
    """`scale * clamp(round(x / scale), lowest, highest)`; gradients of the scale as in LSQ (Esser et al. 2020)."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, lowest: int, highest: int) -> Tensor:
        scaled = values / scale
        integers = scaled.round().clamp_(lowest, highest)
        inside = (scaled >= lowest) & (scaled <= highest)
        ctx.save_for_backward(scaled, integers, inside, scale)
        return integers * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        scaled, integers, inside, scale = ctx.saved_tensors
        of_scale = None
        if ctx.needs_input_grad[1]:
            of_scale = (gradient * (integers - scaled * inside)).sum_to_size(scale.shape)
        return gradient * inside, of_scale, None, None


def fake_quantize(values: Tensor, scale: Tensor, lowest: int, highest: int) -> Tensor:
    """Return the quantized values; gradients pass straight through the rounding, to the values and the scale.

    >>> fake_quantize(torch.tensor([0.3, 1.2, 9.0]), torch.tensor(0.5), -4, 3)
    tensor([0.5000, 1.0000, 1.5000])
    """
    quantized: Tensor = _FakeQuantize.apply(values, scale, lowest, highest)
    return quantized


def mixed(quantized: Tensor, exact: Tensor, drop: float, rng: torch.Generator) -> Tensor:
    """Return a random mixture: each value is exact with probability `drop`, otherwise quantized (Wei et al. 2022).

    >>> mixed(torch.zeros(3), torch.ones(3), 1.0, torch.Generator())
    tensor([1., 1., 1.])
    """
    if drop == 0:
        return quantized
    kept = torch.rand(exact.shape, generator=rng) < drop  # drawn on the CPU: equal on every device
    return torch.where(kept.to(exact.device), exact, quantized)


@torch.no_grad()
def best_scale(weight: Tensor, scale: Tensor, lowest: int, highest: int) -> Tensor:
    """Return the scale that minimizes the summed `|w - Q(w)| ** 2.4`, of ranges from 0.3 to 1 times the largest weight.

    Args:
        weight: the weight.
        scale: a scale, whose shape says where values share one.
        lowest: the lowest integer.
        highest: the highest integer.
    """
    shared = [axis for axis in range(weight.ndim) if scale.ndim != weight.ndim or scale.shape[axis] == 1]
    widest = (weight.abs().amax(shared, keepdim=True) / highest).clamp(min=torch.finfo(weight.dtype).tiny)
    best, least = widest.clone(), torch.full_like(widest, torch.inf)
    for ratio in torch.linspace(1, _SMALLEST_RATIO, _RATIOS).tolist():
        candidate = widest * ratio
        quantized = (weight / candidate).round().clamp(lowest, highest) * candidate
        error = (weight - quantized).abs().pow(NORM).sum(shared, keepdim=True)
        best, least = torch.where(error < least, candidate, best), torch.minimum(error, least)
    empty = weight.abs().amax(shared, keepdim=True) == 0
    return torch.where(empty.reshape(scale.shape), scale, best.reshape(scale.shape))
