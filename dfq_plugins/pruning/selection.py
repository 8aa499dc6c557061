"""Selection of filters to remove: those with a scale below a threshold, or the smallest until a target is met."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from dfq_plugins.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

    from dfq_plugins.pruning.graph import FilterGroup

Removed = dict[str, list[int]]
"""Filters to remove, by the name of their group."""


def select_by_threshold(groups: Sequence[FilterGroup], scales: Mapping[str, Tensor], threshold: float) -> Removed:
    """Return the filters whose scale is below the threshold.

    Raises:
        UsageError: a layer would lose all its filters.
    """
    removed = {group.name: (scales[group.name] < threshold).nonzero().flatten().tolist() for group in groups}
    for group in groups:
        if len(removed[group.name]) == group.size:
            largest = float(scales[group.name].max())
            raise UsageError(
                f"The threshold {threshold:g} would empty the layer {group.name!r}: the largest scale of its "
                f"{group.size} filters is {largest:.3g}. Lower the threshold, name the layer in the option keep, or "
                "set the share of MACs to keep: macs=0.7."
            )
    return removed


def select_by_target(
    groups: Sequence[FilterGroup],
    scales: Mapping[str, Tensor],
    macs: Mapping[str, int],
    target: float,
    fewest: float,
) -> Removed:
    """Return the smallest set of lowest-scale filters, over all layers, whose removal meets the target.

    Args:
        groups: the groups that can be pruned.
        scales: scales of their filters, `(filters,)` each.
        macs: MACs of each layer of the original network; those of the whole network under the name "".
        target: share of the network's MACs to keep.
        fewest: minimum share of its filters that each layer keeps.

    Raises:
        UsageError: the target cannot be met without emptying layers.
    """
    order = _smallest_first(groups, scales, fewest)
    low, high = 0, len(order)
    wanted = target * macs[""]
    if remaining_multiply_adds(groups, _as_removed(groups, order), macs) > wanted:
        least = remaining_multiply_adds(groups, _as_removed(groups, order), macs) / macs[""]
        raise UsageError(
            f"Keeping only {target:.0%} of the MACs would empty layers: with {fewest:.0%} of the filters in each of "
            f"{', '.join(repr(group.name) for group in groups)}, {least:.1%} remain. Raise macs, or lower the option "
            "fewest."
        )
    while low < high:
        middle = (low + high) // 2
        left = remaining_multiply_adds(groups, _as_removed(groups, order[:middle]), macs)
        low, high = (low, middle) if left <= wanted else (middle + 1, high)
    return _as_removed(groups, order[:low])


def filter_multiply_adds(group: FilterGroup, macs: Mapping[str, int]) -> float:
    """Return the MACs that one filter of a group takes in the whole network."""
    return sum(macs.get(member.name, 0) * len(member.places[0]) / member.width for member in group.members)


def remaining_multiply_adds(groups: Iterable[FilterGroup], removed: Removed, macs: Mapping[str, int]) -> float:
    """Return the network's MACs without the given filters.

    Each layer's MACs are multiplied by the shares of its outputs and of its inputs that remain.
    """
    left: dict[str, dict[bool, float]] = {}  # by layer: the remaining shares of its outputs and inputs
    for group in groups:
        for member in group.members:
            gone = sum(len(member.places[channel]) for channel in removed.get(group.name, ()))
            sides = left.setdefault(member.name, {})
            sides[member.outputs] = sides.get(member.outputs, 1.0) - gone / member.width
    saved = sum(macs.get(name, 0) * (1 - math.prod(sides.values())) for name, sides in left.items())
    return macs[""] - saved


def _smallest_first(
    groups: Sequence[FilterGroup], scales: Mapping[str, Tensor], fewest: float
) -> list[tuple[float, int, int]]:
    """Return (scale, index of the group, filter) in ascending order, without those that each layer must keep."""
    order: list[tuple[float, int, int]] = []
    for place, group in enumerate(groups):
        rows = sorted((float(scale), place, channel) for channel, scale in enumerate(scales[group.name]))
        order += rows[: group.size - max(1, math.ceil(fewest * group.size))]
    return sorted(order)


def _as_removed(groups: Sequence[FilterGroup], chosen: Iterable[tuple[float, int, int]]) -> Removed:
    removed: Removed = {group.name: [] for group in groups}
    for _, place, channel in chosen:
        removed[groups[place].name].append(channel)
    return {name: sorted(channels) for name, channels in removed.items()}


def kept_filters(groups: Iterable[FilterGroup], removed: Removed) -> dict[str, int]:
    """Return the number of remaining filters of each group."""
    counts = Counter({name: len(channels) for name, channels in removed.items()})
    return {group.name: group.size - counts[group.name] for group in groups}
