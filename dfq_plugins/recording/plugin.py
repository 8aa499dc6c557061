"""Registers the generators that use activation records, through the public hook."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfq_plugins.hookspecs import hookimpl
from dfq_plugins.recording.generator_options import RecordOptions
from dfq_plugins.types import GeneratorEntry

if TYPE_CHECKING:
    from collections.abc import Iterable

_HERE = "dfq_plugins.recording.generators"


@hookimpl
def dfq_generators() -> Iterable[GeneratorEntry]:
    """Return the generators that rebuild inputs from a record that `dfq record` wrote."""
    return tuple(
        GeneratorEntry(name, f"from a record: {summary}", f"{_HERE}:{class_name}", options=RecordOptions)
        for name, summary, class_name in (
            ("record-top", "inputs that match the logits of their class", "RecordTopGenerator"),
            ("record-all", "inputs that match the activations of all layers", "RecordAllGenerator"),
            (
                "record-all-dropout",
                "inputs that match all layers under dropout filters",
                "RecordAllDropoutGenerator",
            ),
            (
                "record-spectral",
                "inputs that match spectral coefficients of all layers",
                "RecordSpectralGenerator",
            ),
            (
                "record-spectral-pairs",
                "inputs that match spectral coefficients of each layer pair",
                "RecordSpectralPairsGenerator",
            ),
        )
    )
