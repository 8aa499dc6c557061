"""Learned rounding and scale of one weight (Nagel et al. 2020, "Up or Down?"; Jeon et al. 2023, "Genie").

    w = s * clamp(floor(w0 / s0) + h(V), lowest, highest),    h(V) = clamp(1.2 * sigmoid(V) - 0.1, 0, 1)

`V` is learned for each weight, `s` for each channel, and `floor(w0 / s0)` stays. `V` starts where `h` is the rest that
the floor cut off, so the first weights are the float ones. At the end, `h` is rounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from dfq_plugins.types import QuantizerHandle

_STRETCH = 1.2
_SHIFT = 0.1


class LearnedWeight(nn.Module):
    """One weight in training.

    Args:
        weight: the float weight.
        scale: its first scale, which broadcasts over it.
        handle: its quantizer.
        learned_rounding: whether roundings are learned; otherwise, each weight is rounded to the nearest integer.
    """

    def __init__(self, weight: Tensor, scale: Tensor, handle: QuantizerHandle, *, learned_rounding: bool) -> None:
        super().__init__()
        self._lowest, self._highest, self._start = handle.lowest, handle.highest, scale
        self.log_ratio = nn.Parameter(torch.zeros_like(scale))
        scaled = (weight / scale).clamp(handle.lowest, handle.highest)
        self._floor = scaled.floor()
        rest = scaled - self._floor
        self.rounding = nn.Parameter(_inverse_share(rest)) if learned_rounding else None
        self._nearest = rest.round()

    @property
    def scale(self) -> Tensor:
        """The current scale."""
        return self._start * self.log_ratio.exp()

    def forward(self) -> Tensor:
        """Return the weight with soft roundings."""
        up = self._nearest if self.rounding is None else share(self.rounding)
        return (self._floor + up).clamp(self._lowest, self._highest) * self.scale

    def penalty(self, exponent: float) -> Tensor:
        """Return `sum(1 - |2 h - 1| ** exponent)`, which is zero where every rounding is decided."""
        if self.rounding is None:
            return torch.zeros(())
        return (1 - (2 * share(self.rounding) - 1).abs().pow(exponent)).sum()

    @torch.no_grad()
    def integers(self) -> Tensor:
        """Return the learned integers."""
        up = self._nearest if self.rounding is None else (self.rounding >= 0).to(self._floor)
        return (self._floor + up).clamp(self._lowest, self._highest)

    def roundings(self) -> Iterator[nn.Parameter]:
        """Yield the parameter of the roundings, if they are learned."""
        if self.rounding is not None:
            yield self.rounding


def share(rounding: Tensor) -> Tensor:
    """Return h(V): the share of a step that is added to the floor, 0 to 1.

    >>> share(torch.tensor([-9.0, 0.0, 9.0]))
    tensor([0.0000, 0.5000, 1.0000])
    """
    return (_STRETCH * torch.sigmoid(rounding) - _SHIFT).clamp(0, 1)


def _inverse_share(rest: Tensor) -> Tensor:
    return -torch.log(_STRETCH / (rest + _SHIFT) - 1)
