"""What the demo calibrates on: real digits, and what each generator makes from the network."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dfq_plugins.demo.folder import discard_data_set
from dfq_plugins.demo.network import DIGITS_SPEC
from dfq_plugins.quality.run import inspect
from dfq_plugins.report.history import History, loss_curves
from dfq_plugins.synthesis.run import synthesize
from dfq_plugins.types import Batch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import torch
    from torch import nn

    from dfq_plugins.data.dataset import SyntheticDataset
    from dfq_plugins.demo.data import Digits
    from dfq_plugins.host.registry import Registry
    from dfq_plugins.quality.inspection import Inspection
    from dfq_plugins.report.content import Curves
    from dfq_plugins.types import ProgressEvent

NUM_SAMPLES = 256
"""Samples of each source, the real digits included, so that all are compared on the same footing."""

PICTURES = 24
"""Samples of each source that the report shows."""


@dataclass(frozen=True, eq=False)
class CalibrationSource:
    """One kind of data to calibrate on.

    Args:
        name: row of the result table.
        summary: what it is, in a line.
        data: what calibration gets.
        samples: the first samples, for the report.
        inspection: how good it is, in the network's eyes.
        losses: curves of its synthesis, where it has any.
        settings: what the data depend on.
    """

    name: str
    summary: str
    data: torch.Tensor | SyntheticDataset
    samples: Batch
    inspection: Inspection
    losses: Curves | None = None
    settings: Mapping[str, object] = dataclasses.field(default_factory=dict)


def real_source(network: nn.Module, training: Digits) -> CalibrationSource:
    """Return the first training digits, as many as each generator makes."""
    inputs = training.inputs[:NUM_SAMPLES]
    return CalibrationSource(
        name=f"{len(inputs)} real digits",
        summary="From the training data, for comparison only: the other rows never saw them.",
        data=inputs,
        samples=Batch(inputs[:PICTURES], training.labels[:PICTURES]),
        inspection=inspect(inputs, network, spec=DIGITS_SPEC),
    )


def synthetic_source(
    network: nn.Module,
    generator: str,
    folder: Path,
    seed: int,
    listeners: Sequence[Callable[[ProgressEvent], None]],
    registry: Registry,
) -> CalibrationSource:
    """Return what a generator makes from the network, written to `folder` over the data set of an earlier demo."""
    discard_data_set(folder)
    history = History()
    data = synthesize(
        network,
        DIGITS_SPEC,
        generator=generator,
        num_samples=NUM_SAMPLES,
        seed=seed,
        output=folder,
        listeners=[*listeners, history],
        registry=registry,
    )
    options = registry.options("generator", generator)
    return CalibrationSource(
        name=generator,
        summary=registry.generators[generator].entry.summary,
        data=data,
        samples=next(iter(data.loader(PICTURES))),
        inspection=inspect(data, network),
        losses=loss_curves(history.events, [shard.num_samples for shard in data.manifest.shards]),
        settings=dataclasses.asdict(options) | {"seed": seed, "samples": NUM_SAMPLES},
    )
