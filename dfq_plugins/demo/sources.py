"""The demo's calibration data: real digits, and the synthetic data of each generator."""

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
"""Number of samples of each source, including the real digits, so that the comparison is fair."""

PICTURES = 24
"""Number of samples of each source that the report shows."""


@dataclass(frozen=True, eq=False)
class CalibrationSource:
    """One kind of data to calibrate on.

    Args:
        name: row of the result table.
        summary: one-line description.
        data: the calibration data.
        samples: the first samples, for the report.
        inspection: quality of the data, as measured with the network.
        losses: loss curves of its synthesis, if any.
        settings: the settings that the data depend on.
    """

    name: str
    summary: str
    data: torch.Tensor | SyntheticDataset
    samples: Batch
    inspection: Inspection
    losses: Curves | None = None
    settings: Mapping[str, object] = dataclasses.field(default_factory=dict)


def real_source(network: nn.Module, training: Digits) -> CalibrationSource:
    """Return the first training digits, the same number as each generator makes."""
    inputs = training.inputs[:NUM_SAMPLES]
    return CalibrationSource(
        name=f"{len(inputs)} real digits",
        summary="From the training data, for comparison only; the other rows do not use them.",
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
    """Synthesize data from the network into `folder`, replacing the data set of an earlier demo."""
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
