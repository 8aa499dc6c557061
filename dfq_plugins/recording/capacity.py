"""The memory that a recording needs, and the check that it fits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfq_plugins.errors import UsageError
from dfq_plugins.recording.filters import KEPT_UNITS
from dfq_plugins.recording.moments import LayerMoments
from dfq_plugins.recording.units import channel_count

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dfq_plugins.recording.info import Layer
    from dfq_plugins.recording.options import RecordingOptions

GIBIBYTE = 2**30
_SHOWN = 3


def memory_needed(sizes: Sequence[int], classes: int, options: RecordingOptions) -> float:
    """Return the GiB that the statistics of layers of these sizes take.

    >>> from dfq_plugins.recording.options import RecordingOptions
    >>> round(memory_needed([1200, 1200, 10], 10, RecordingOptions()), 2)
    0.65
    """
    needed = LayerMoments.bytes_needed(sizes, classes, joint=options.spectral)
    if options.dropout_filters:
        thinned = [round(KEPT_UNITS * size) for size in sizes[:-1]] + [sizes[-1]]
        needed += options.dropout_filters * LayerMoments.bytes_needed(thinned, classes, joint=False)
    return needed / GIBIBYTE


def require_memory(layers: Sequence[Layer], classes: int, options: RecordingOptions) -> None:
    """Reject statistics that need more memory than the options allow, and suggest alternatives.

    Raises:
        UsageError: they do; the message names the largest layers and what to record instead.
    """
    needed = memory_needed([layer.units for layer in layers], classes, options)
    if needed <= options.max_memory:
        return
    largest = sorted(layers, key=lambda layer: layer.units, reverse=True)[:_SHOWN]
    listed = ", ".join(f"{layer.name} {layer.units:,}" for layer in largest)
    raise UsageError(
        f"The statistics of {sum(layer.units for layer in layers):,} units (largest layers: {listed}) for {classes} "
        f"classes would take {needed:,.1f} GiB of memory, but max_memory is {options.max_memory:g}. "
        f"{' '.join(_alternatives(layers, classes, options))}"
    )


def _alternatives(layers: Sequence[Layer], classes: int, options: RecordingOptions) -> list[str]:
    advice = []
    if options.units == "full":
        channels = memory_needed([channel_count(layer) for layer in layers], classes, options)
        advice.append(f"With units=channel they take {channels:,.2f} GiB.")
    return [*advice, "Or record fewer layers or statistics (top needs hardly any memory), or raise max_memory."]
