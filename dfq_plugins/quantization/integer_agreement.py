"""Compares the integers that a file computes with the values that torch rounds, tensor by tensor.

An integer is right if it is a correct rounding of torch's value. The sums of a convolution differ in their last bits
between two engines, so a value within `TIE` of the boundary between two levels may be rounded either way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    Array = np.ndarray[Any, Any]

TIE = 0.02
"""Distance from the boundary between two levels, in steps, within which a value may be rounded either way."""

LARGEST_SHARE = 1e-3
"""Maximum share of wrong integers in an activation tensor."""

LARGEST_CHANNEL_SHARE = 0.05
"""Maximum share of wrong integers in one of its channels, if more than `FEW` are wrong."""

FEW = 2
"""Number of wrong integers that a channel may always have: with few values, a share says little."""


@dataclass(frozen=True)
class IntegerAgreement:
    """How the integers of one tensor compare.

    Args:
        name: name of the tensor.
        count: number of integers compared.
        equal: number of integers equal to torch's.
        wrong: number of integers that are not a correct rounding of torch's values.
        largest: the largest difference, in steps.
        worst_channel: wrong integers and size of the channel with the largest share of wrong ones.
        exact: whether a single wrong integer is a fault, as in weights.
    """

    name: str
    count: int
    equal: int
    wrong: int
    largest: float
    worst_channel: tuple[int, int] = (0, 1)
    exact: bool = False

    @property
    def agrees(self) -> bool:
        """Whether float arithmetic can explain the number of wrong integers."""
        if self.exact:
            return self.wrong == 0
        wrong, size = self.worst_channel
        return self.wrong <= LARGEST_SHARE * self.count and (wrong <= FEW or wrong <= LARGEST_CHANNEL_SHARE * size)

    def __str__(self) -> str:
        what = "not torch's" if self.exact else "off by more than a rounding tie"
        return f"{self.name}: {self.wrong:,} of {self.count:,} integers are {what}, by up to {self.largest:.3g} steps"


def compare_integers(
    name: str, found: Array, levels: Array, *, lowest: float, highest: float, channel_axis: int | None = None
) -> IntegerAgreement:
    """Compare integers with the values that they represent.

    Args:
        name: name of the tensor in reports.
        found: the integers of the file.
        levels: torch's values before rounding, divided by the step; of the same shape.
        lowest: lowest level; values below it are clipped.
        highest: highest level; values above it are clipped.
        channel_axis: channel axis; if given, each channel is checked separately as well.

    >>> compare_integers("conv.input", np.array([1, 2, 9]), np.array([0.6, 1.499, 7.2]), lowest=-8, highest=7).wrong
    1
    """
    clipped = np.clip(levels, lowest, highest)
    wrong = ~(np.abs(found - clipped) <= 0.5 + TIE)  # NaN is wrong, too
    rounded = np.rint(clipped)
    different = found != rounded
    largest = float(np.abs(found[different] - rounded[different]).max(initial=0))
    equal = found.size - int(np.count_nonzero(different))
    return IntegerAgreement(name, found.size, equal, int(wrong.sum()), largest, _worst(wrong, channel_axis))


def compare_weights(name: str, found: Array, expected: Array, step: Array) -> IntegerAgreement:
    """Compare the dequantized weights of a file with torch's fake-quantized ones.

    Args:
        name: name of the layer.
        found: values that the file computes with.
        expected: values that torch computes with, of the same shape.
        step: torch's scale, which broadcasts to that shape.
    """
    difference = np.abs(found.astype(np.float64) - expected) / step
    wrong = ~(difference <= TIE)
    count, faults = found.size, int(wrong.sum())
    largest = float(difference.max(initial=0))
    return IntegerAgreement(name, count, count - faults, faults, largest, _worst(wrong, 0), exact=True)


def merged(parts: Iterable[IntegerAgreement]) -> IntegerAgreement:
    """Merge the comparisons of one tensor over several batches."""
    total, *others = parts
    for part in others:
        total = IntegerAgreement(
            total.name,
            total.count + part.count,
            total.equal + part.equal,
            total.wrong + part.wrong,
            max(total.largest, part.largest),
            max(total.worst_channel, part.worst_channel, key=lambda channel: channel[0] / channel[1]),
            total.exact,
        )
    return total


def _worst(wrong: Array, axis: int | None) -> tuple[int, int]:
    """Return the number of wrong integers and the size of the worst channel."""
    if axis is None or axis >= wrong.ndim or not wrong.any():
        return 0, 1
    by_channel = np.moveaxis(wrong, axis, 0).reshape(wrong.shape[axis], -1)
    return int(by_channel.sum(1).max()), by_channel.shape[1]
