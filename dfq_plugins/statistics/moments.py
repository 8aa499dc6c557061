"""Per-channel mean and variance of batches, and how to pool them: pure functions of tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def batch_moments(values: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Return the per-channel mean and biased variance, in float32, of a tensor `(batch, channels, *spatial)`.

    Computed from `values - shift` in one pass; a shift near the mean keeps the difference of squares accurate.

    >>> mean, var = batch_moments(torch.tensor([[1.0], [3.0]]), torch.tensor([2.5]))
    >>> mean.item(), var.item()
    (2.0, 1.0)
    """
    axes = [axis for axis in range(values.ndim) if axis != 1]
    shape = [1, -1] + [1] * (values.ndim - 2)
    centered = values.float() - shift.float().view(shape)
    offset = centered.mean(axes)
    return shift.float() + offset, (centered.square().mean(axes) - offset.square()).clamp_min(0)


@dataclass(frozen=True)
class Moments:
    """Mean and variance per channel, with all layers in one vector, pooled over `count` samples."""

    mean: Tensor
    var: Tensor
    count: int = 1

    def pooled(self, other: Moments) -> Moments:
        """Return the exact moments of both sets together (Chan et al. 1979, pairwise update)."""
        count = self.count + other.count
        share = other.count / count
        delta = other.mean - self.mean
        mean = self.mean + delta * share
        var = self.var + (other.var - self.var) * share + delta.square() * share * (1 - share)
        return Moments(mean, var, count)


def averaged_calls(layers: list[list[Moments]]) -> Moments:
    """Average each layer's moments over its calls and concatenate the layers into one vector."""
    mean = torch.cat([torch.stack([call.mean for call in calls]).mean(0) for calls in layers])
    var = torch.cat([torch.stack([call.var for call in calls]).mean(0) for calls in layers])
    return Moments(mean, var, layers[0][0].count)
