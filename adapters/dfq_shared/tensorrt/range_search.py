"""The framework's search for the range with the least squared error, over all candidate ranges at once.

The framework tries one range after another, a few milliseconds each. The arithmetic and the candidates here are the
same (`_compute_amax_mse` of its histogram calibrator).
"""

from __future__ import annotations

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


def search_weight_ranges(weight: torch.Tensor, *, axis: int | None, num_bits: int, bins: int) -> torch.Tensor:
    """Return the ranges with the least squared error on histograms of a weight, as the frameworks' own search has them.

    Args:
        weight: the weight of a layer; no channel is all zeros.
        axis: its output channels, which get a range each; None for one range.
        num_bits: width of the signed integers.
        bins: bins of each histogram.

    Returns:
        The ranges, with a size of 1 on the other axes; a scalar if `axis` is None.

    >>> weight = torch.tensor([[1.0, -1.0, 1.0, 0.0], [0.1, -0.1, 0.1, 4.0]])
    >>> search_weight_ranges(weight, axis=0, num_bits=8, bins=256).shape
    torch.Size([2, 1])
    """
    values = weight.detach().float().abs()
    channels = values.flatten()[None] if axis is None else values.transpose(0, axis).flatten(1)
    ranges = []
    for channel in channels:
        highest = float(channel.max())
        counts, edges = torch.histc(channel, bins, 0, highest), torch.linspace(0, highest, bins + 1).to(channel.device)
        ranges.append(search_mse_range(counts, edges, num_bits=num_bits, unsigned=False))
    if axis is None:
        return ranges[0]
    return torch.stack(ranges).view([len(ranges) if index == axis else 1 for index in range(weight.dim())])
