"""Keeps a run's progress events, and turns them into loss curves."""

from __future__ import annotations

import bisect
from itertools import accumulate
from typing import TYPE_CHECKING

from dfq_plugins.report.content import Curves, Section

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dfq_plugins.types import ProgressEvent

SYNTHESIS = "synthesize"
MOST_CURVES = 12
"""Shards drawn; more would only thicken the bundle."""


class History:
    """A progress listener that remembers every event that carries metrics."""

    def __init__(self) -> None:
        self.events: list[ProgressEvent] = []

    def __call__(self, event: ProgressEvent) -> None:
        """Keep the event if it says more than how far the run is."""
        if event.metrics:
            self.events.append(event)


def loss_curves(events: Sequence[ProgressEvent], shard_sizes: Sequence[int], metric: str = "loss") -> Curves | None:
    """Return the loss of each shard over its own optimization; None where none was reported.

    Events count the samples of the whole run; a shard's own progress is where it lies between the shard's ends.

    Args:
        events: of a synthesis, in order.
        shard_sizes: samples of each shard of the whole set.
        metric: which of the events' metrics.
    """
    told = [event for event in events if event.stage == SYNTHESIS and metric in event.metrics]
    ends = list(accumulate(shard_sizes))
    place = bisect.bisect_right(ends, told[0].completed) if told else 0
    curves: dict[int, list[tuple[float, float]]] = {}
    for event in told:
        place = min(max(place, bisect.bisect_left(ends, event.completed)), len(ends) - 1)
        share = 100 * (event.completed - ends[place] + shard_sizes[place]) / shard_sizes[place]
        curves.setdefault(place, []).append((share, event.metrics[metric]))
        place += event.completed == ends[place]  # the next shard's first event may not count a whole sample yet
    if not curves:
        return None
    drawn = [tuple(zip(*points, strict=True)) for points in list(curves.values())[:MOST_CURVES]]
    caption = "One line for each shard: the samples that are optimized together."
    return Curves(
        tuple((metric, across, values) for across, values in drawn),
        "percent of the iterations",
        f"{metric} (log scale, lower is better)",
        caption if len(curves) > 1 else "All samples were optimized together.",
        logarithmic=True,
    )


def loss_section(curves: Curves | None) -> Section | None:
    """Return the section with the losses of a synthesis; None where none were reported."""
    if curves is None:
        return None
    text = (
        "The loss is what the synthesis lowers step by step: above all the distance between the statistics that the "
        "samples cause and those that the network recorded. A curve that still falls at the right edge would gain from "
        "more iterations."
    )
    return Section("How the synthesis went", (text,), (curves,))
