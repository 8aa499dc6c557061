"""Quantizes the slopes of PReLU so that 1 is one of their levels.

torch.ao's kernel multiplies every value by a slope, and non-negative values by the quantized 1. If the range of the
slopes does not hold 1, non-negative values come out too small: with torch's initial slope of 0.25, at a quarter.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.ao.quantization import MinMaxObserver


def slope_format(lowest: float, highest: float, levels: int) -> tuple[float, int]:
    """Return the finest scale 1/n, and its zero point, at which `levels` steps cover 0, 1 and all slopes.

    >>> slope_format(0.25, 0.25, 255)
    (0.00392156862745098, 0)
    >>> slope_format(-0.5, 0.5, 3)
    (0.5, 1)
    """
    lowest, highest = min(0.0, lowest), max(1.0, highest)
    for steps in range(int(levels / (highest - lowest)), 0, -1):
        below, above = math.ceil(-lowest * steps), math.ceil(highest * steps)
        if below + above <= levels:
            return 1 / steps, below
    scale = (highest - lowest) / levels  # slopes so large that 1 is less than a step: the nearest level has to do
    return scale, round(-lowest / scale)


class SlopeObserver(MinMaxObserver):  # type: ignore[misc]
    """Observes slopes, and returns a scale at which 1 is exact."""

    def calculate_qparams(self) -> Any:
        """Return the scale and the zero point of the observed slopes, each of shape (1,)."""
        scale, zero_point = slope_format(self.min_val.item(), self.max_val.item(), self.quant_max - self.quant_min)
        return torch.tensor([scale]), torch.tensor([zero_point])
