"""The percentile of absolute activations, found among the few largest.

Brevitas's own selects from all of them. On a batch of images that takes longer than the rest of the pass.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dfq_brevitas.framework import AbsPercentile

if TYPE_CHECKING:
    import torch

_ROW = 64


class TailPercentile(AbsPercentile):  # type: ignore[misc]  # Brevitas is untyped
    """Brevitas's percentile, with the same result to the last bit."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the percentile of the absolute values, of all or along Brevitas's dimension."""
        if self.stats_reduce_dim is not None:
            found: torch.Tensor = super().forward(x)
            return found
        rank = math.floor(0.01 * self.q * x.numel() + 0.5)  # as Brevitas computes it
        return kth_smallest(x.abs().flatten(), rank)


def kth_smallest(values: torch.Tensor, rank: int) -> torch.Tensor:
    """Return the value of a rank, from 1, which is quick where it is among the largest.

    Of rows of values, take as many as there are values from that rank on, those with the largest maxima. Each holds a
    value no smaller than the least of these maxima, so that the wanted one is no smaller either.

    Args:
        values: `(count,)`.
        rank: 1 for the smallest value, `count` for the largest.

    >>> import torch
    >>> kth_smallest(torch.arange(1000.0), 995)
    tensor(994.)
    """
    rows, from_rank_on = len(values) // _ROW, len(values) - rank + 1
    if from_rank_on > rows:
        return values.kthvalue(rank).values
    maxima = values[: rows * _ROW].view(rows, _ROW).amax(1)
    bound = maxima.kthvalue(rows - from_rank_on + 1).values
    largest = values[~(values < bound)]  # NaN, the largest of all to `kthvalue`, stays
    return largest.kthvalue(len(largest) - from_rank_on + 1).values
