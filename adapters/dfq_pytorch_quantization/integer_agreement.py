"""Compares the integers that a file computes with the values that torch rounds, tensor by tensor.

An integer is right if it is a correct rounding of torch's value. The sums of a convolution differ in their last bits
between two engines, so a value within `TIE` of the edge between two levels may fall on either side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    Integers = np.ndarray[Any, np.dtype[np.integer[Any]]]
    Values = np.ndarray[Any, np.dtype[np.floating[Any]]]

TIE = 0.02
"""Distance from the edge between two levels, in steps, within which an integer may fall on either side."""

LARGEST_SHARE = 1e-3
"""Largest share of wrong integers in a tensor of activations."""

LARGEST_CHANNEL_SHARE = 0.05
"""Largest share of wrong integers in one channel of it, where more than `FEW` are wrong."""

FEW = 2
"""Wrong integers that a channel may have: a channel of few values has no share worth the name."""


@dataclass(frozen=True)
class IntegerAgreement:
    """How the integers of one tensor compare.

    Args:
        name: name of the quantizer.
        count: how many integers were compared.
        equal: how many are equal to torch's.
        wrong: how many are no correct rounding of torch's values.
        largest: the largest difference, in steps.
        worst_channel: wrong integers and size of the channel with the largest share of wrong ones.
    """

    name: str
    count: int
    equal: int
    wrong: int
    largest: int
    worst_channel: tuple[int, int] = (0, 1)

    @property
    def share(self) -> float:
        """Share of equal integers."""
        return self.equal / self.count

    @property
    def agrees(self) -> bool:
        """Whether no more integers are wrong than float arithmetic explains."""
        wrong, size = self.worst_channel
        return self.wrong <= LARGEST_SHARE * self.count and (wrong <= FEW or wrong <= LARGEST_CHANNEL_SHARE * size)


def compare_integers(
    name: str,
    found: Integers,
    levels: Values,
    *,
    lowest: int,
    highest: int,
    channel_axis: int | None = None,
    tie: float = TIE,
) -> IntegerAgreement:
    """Compare integers with the values that they stand for.

    Args:
        name: what to call the tensor.
        found: the integers of the file.
        levels: torch's values before rounding, divided by the step; of the same shape.
        lowest: lowest level; values below it are cut off.
        highest: highest level.
        channel_axis: axis of the channels, which are then judged one by one as well.
        tie: distance from a rounding edge, in steps, within which both integers are right.

    >>> compare_integers("conv.input", np.array([1, 2, 9]), np.array([0.6, 1.499, 7.2]), lowest=-8, highest=7).wrong
    1
    """
    clipped = np.clip(levels, lowest, highest)
    distance = np.abs(found - clipped)
    differing = distance > 0.5  # noqa: PLR2004  (half a step: the definition of rounding)
    wrong = distance > 0.5 + tie
    largest = int(np.abs(found[differing] - np.rint(clipped[differing])).max(initial=0))
    # A value on the very edge between two levels has two right integers, of which `differing` holds neither.
    equal = found.size - int(np.count_nonzero(found != np.rint(clipped)))
    return IntegerAgreement(
        name, found.size, equal, int(wrong.sum()), max(largest, int(equal < found.size)), _worst(wrong, channel_axis)
    )


def merge(parts: Iterable[IntegerAgreement]) -> IntegerAgreement:
    """Add up the comparisons of one tensor over several batches."""
    first, *others = parts
    total = first
    for part in others:
        total = IntegerAgreement(
            total.name,
            total.count + part.count,
            total.equal + part.equal,
            total.wrong + part.wrong,
            max(total.largest, part.largest),
            max(total.worst_channel, part.worst_channel, key=lambda channel: channel[0] / channel[1]),
        )
    return total


def _worst(wrong: np.ndarray[Any, Any], axis: int | None) -> tuple[int, int]:
    """Return wrong integers and size of the worst channel."""
    if axis is None or axis >= wrong.ndim or not wrong.any():
        return 0, 1
    by_channel = np.moveaxis(wrong, axis, 0).reshape(wrong.shape[axis], -1)
    return int(by_channel.sum(1).max()), by_channel.shape[1]
