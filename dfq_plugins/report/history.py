"""Records a run's progress events, and turns them into loss curves."""

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
"""Maximum number of shards to draw; more curves would only clutter the plot."""


class History:
    """A progress listener that records every event with metrics."""

    def __init__(self) -> None:
        self.events: list[ProgressEvent] = []

    def __call__(self, event: ProgressEvent) -> None:
        """Record the event if it has metrics."""
        if event.metrics:
            self.events.append(event)


def loss_curves(events: Sequence[ProgressEvent], shard_sizes: Sequence[int], metric: str = "loss") -> Curves | None:
    """Return the loss curve of each shard's optimization; None if no losses were reported.

    Events count the samples of the whole run; a shard's progress is the position between its first and last sample.

    Args:
        events: events of a synthesis, in order.
        shard_sizes: number of samples of each shard of the whole set.
        metric: name of the metric to plot.
    """
    reported = [event for event in events if event.stage == SYNTHESIS and metric in event.metrics]
    ends = list(accumulate(shard_sizes))
    place = bisect.bisect_right(ends, reported[0].completed) if reported else 0
    curves: dict[int, list[tuple[float, float]]] = {}
    for event in reported:
        place = min(max(place, bisect.bisect_left(ends, event.completed)), len(ends) - 1)
        share = 100 * (event.completed - ends[place] + shard_sizes[place]) / shard_sizes[place]
        curves.setdefault(place, []).append((share, event.metrics[metric]))
        place += event.completed == ends[place]  # the next shard's first event may not have completed a sample yet
    if not curves:
        return None
    drawn = [tuple(zip(*points, strict=True)) for points in list(curves.values())[:MOST_CURVES]]
    caption = "One line per shard, a group of samples that are optimized together."
    return Curves(
        tuple((metric, across, values) for across, values in drawn),
        "percent of the iterations",
        f"{metric} (log scale, lower is better)",
        caption if len(curves) > 1 else "All samples were optimized together.",
        logarithmic=True,
    )


def loss_section(curves: Curves | None) -> Section | None:
    """Return the section with the losses of a synthesis; None if no losses were reported."""
    if curves is None:
        return None
    text = (
        "Synthesis minimizes the loss step by step: mainly the distance between the statistics of the samples and "
        "those recorded in the network. If a curve is still falling at the right edge, more iterations would help."
    )
    return Section("Synthesis progress", (text,), (curves,))
