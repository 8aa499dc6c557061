"""One cell of the coverage table each: tiny networks of many kinds through every step of every framework."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from torch import nn

import kinds_of_networks as kinds
from benchmark_modules import benchmark_module

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CELL, TABLE = benchmark_module("coverage_cell"), benchmark_module("coverage")

IMAGE, CLIP, SIGNAL = (3, 16, 16), (3, 4, 8, 8), (2, 32)


def classifier(features: type[nn.Module]) -> Callable[[], nn.Module]:
    return lambda: kinds.Classifier(features())


KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "downsampling": (classifier(kinds.Downsampling), IMAGE),
    "squeeze-excite": (classifier(kinds.Excited), IMAGE),
    "dense": (classifier(kinds.Dense), IMAGE),
    "pre-activation": (classifier(kinds.PreActivation), IMAGE),
    "branches": (classifier(kinds.Branched), IMAGE),
    "shuffled channels": (classifier(kinds.Shuffled), IMAGE),
    "parallel convolutions": (classifier(kinds.Reparameterized), IMAGE),
    "dilated segmentation": (kinds.Dilated, IMAGE),
    "transposed decoder": (kinds.Decoder, IMAGE),
    "attention": (kinds.Attentive, IMAGE),
    "layer norm": (classifier(kinds.ChannelsLast), IMAGE),
    "video": (kinds.video, CLIP),
    "sequence": (kinds.sequence, SIGNAL),
}
FRAMEWORKS = ("torch-ao", "pytorch-quantization", "brevitas")


def cells() -> Iterator[Any]:
    """Yield every kind in every framework; those that are not slow have each kind once and each framework in turn."""
    for place, name in enumerate(KINDS):
        for framework in FRAMEWORKS:
            marks = [] if framework == FRAMEWORKS[place % len(FRAMEWORKS)] else [pytest.mark.slow]
            yield pytest.param(name, framework, marks=marks)


def measured(name: str, column: str) -> dict[str, Any]:
    """Return the record of a cell, measured in this process."""
    build, shape = KINDS[name]
    record: dict[str, Any] = {}
    row = CELL.Network(name, build, shape, samples=8)
    CELL.measure(row, row.settled(), column, record.update)
    return record


@pytest.mark.parametrize(("name", "framework"), list(cells()))
def test_every_step_works_and_the_outputs_agree(name: str, framework: str) -> None:
    record = measured(name, framework)
    assert TABLE.status_of(record) == "works", record
    assert record["artifacts"]
    assert record["quantized_layers"] > 1


@pytest.mark.parametrize("name", ["squeeze-excite", "attention"])
def test_samples_are_synthesized_from_statistics_or_else_from_noise(name: str) -> None:
    record = measured(name, "synthesize")
    assert TABLE.status_of(record) == "works", record
    assert record["generator"] == ("gaussian" if name == "attention" else "bns")


def test_the_step_in_which_a_cell_failed_is_recorded() -> None:
    record: dict[str, Any] = {}
    row = CELL.Network("activation", nn.ReLU, IMAGE, samples=2)
    CELL.measure(row, row.settled(), "pytorch-quantization", record.update)
    assert record["step"] == "prepare"
    assert record["error"]["of_product"]
    assert TABLE.status_of(record) == "failed"  # names neither a module nor a line
