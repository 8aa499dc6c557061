"""Registers the generators that work from activation records, through the same hook as everybody's."""

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
    """Name the generators that rebuild inputs from what `dfq record` wrote."""
    return tuple(
        GeneratorEntry(name, f"from a record: {summary}", f"{_HERE}:{place}", options=RecordOptions)
        for name, summary, place in (
            ("record-top", "inputs with the logits of their class", "RecordTopGenerator"),
            ("record-all", "inputs with every layer's activations", "RecordAllGenerator"),
            (
                "record-all-dropout",
                "the same in networks thinned by dropout",
                "RecordAllDropoutGenerator",
            ),
            (
                "record-spectral",
                "inputs with the spectral coefficients of all layers",
                "RecordSpectralGenerator",
            ),
            (
                "record-spectral-pairs",
                "inputs with the spectral coefficients of each layer pair",
                "RecordSpectralPairsGenerator",
            ),
        )
    )
