"""How much memory a recording takes, and the refusal of what would not fit."""

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
    """Return the GiB that the statistics of layers of such sizes take.

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
    """Refuse statistics that would take more memory than the options allow, and say what would take less.

    Raises:
        UsageError: they would; with the sizes of the largest layers and of what to record instead.
    """
    needed = memory_needed([layer.units for layer in layers], classes, options)
    if needed <= options.max_memory:
        return
    largest = sorted(layers, key=lambda layer: layer.units, reverse=True)[:_SHOWN]
    named = ", ".join(f"{layer.name} {layer.units:,}" for layer in largest)
    raise UsageError(
        f"The statistics of {sum(layer.units for layer in layers):,} units (the largest layers: {named}) for {classes} "
        f"classes would take {needed:,.1f} GiB of memory, and max_memory is {options.max_memory:g}. "
        f"{' '.join(_instead(layers, classes, options))}"
    )


def _instead(layers: Sequence[Layer], classes: int, options: RecordingOptions) -> list[str]:
    advice = []
    if options.units == "full":
        channels = memory_needed([channel_count(layer) for layer in layers], classes, options)
        advice.append(f"With units=channel they take {channels:,.2f} GiB.")
    return [*advice, "Or record fewer layers, fewer statistics (top alone takes next to nothing), or raise max_memory."]
