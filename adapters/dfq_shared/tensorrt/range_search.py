"""The framework's search for the range with the least squared error, over all candidate ranges at once.

The framework tries one range after another, a few milliseconds each. The arithmetic and the candidates here are the
same (`_compute_amax_mse` of its histogram calibrator).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

START_BIN = 128
"""First bin that the framework tries as the end of the range."""


def search_mse_range(
    counts: torch.Tensor,
    edges: torch.Tensor,
    *,
    num_bits: int,
    unsigned: bool,
    stride: int = 1,
    start_bin: int = START_BIN,
) -> torch.Tensor:
    """Return the range whose quantization has the least mean squared error on a histogram of absolute values.

    Every bin center from `start_bin` on, `stride` bins apart, is a candidate; among equals, the first one wins.

    Args:
        counts: number of values in each bin, `(bins,)`.
        edges: edges of the bins, `(bins + 1,)`.
        num_bits: width of the integers.
        unsigned: whether the integers are unsigned.
        stride: distance between two candidates in bins.
        start_bin: the first candidate.

    >>> import torch
    >>> counts, edges = torch.tensor([0.0, 10.0, 1.0, 10.0]), torch.linspace(0, 4, 5)
    >>> search_mse_range(counts, edges, num_bits=8, unsigned=False, start_bin=1).item()
    3.5
    """
    edges, counts = edges.float(), counts.float()
    centers = (edges[1:] + edges[:-1]) / 2
    candidates = centers[start_bin::stride, None]  # (candidates, 1)
    occupied = counts > 0  # an empty bin has no error
    centers, counts = centers[occupied], counts[occupied]
    highest = 2.0 ** (num_bits - 1 + int(unsigned)) - 1.0
    scales = highest / candidates
    quantized = (centers * scales).round_().clamp_(max=highest).div_(scales)  # (candidates, bins)
    errors = quantized.sub_(centers).square_().mul_(counts).sum(1)
    return candidates[int(errors.argmin()), 0]
