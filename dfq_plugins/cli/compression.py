"""Code shared by `dfq distill` and `dfq prune`: their inputs, and the cost table of a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from dfq_plugins.cli.arguments import FOLDER, SpecArguments, TrainingArguments, bundled, other_network_option
from dfq_plugins.cli.output import print_table
from dfq_plugins.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from dfq_plugins.data.calibration_data import CalibrationData
    from dfq_plugins.distillation.options import TrainingOptions
    from dfq_plugins.network.cost import Cost
    from dfq_plugins.types import Specification

GENERATOR_HELP = "Generator that makes the inputs from the network, or a learning generator."
DEFAULT_SAMPLES = 1024


@dataclass(frozen=True)
class StudentArguments:
    """The number of generated inputs and the output folder of the network."""

    num_samples: int | None
    output: Path | None
    allow_other_network: bool

    def check(self, training: TrainingArguments, kind: type[TrainingOptions]) -> None:
        """Report mistakes before torch is imported.

        Raises:
            UsageError: a setting is invalid, or a generator option is given without a generator.
            PluginError: the generator is unknown or unavailable.
        """
        training.check(kind, "the training")
        if self.num_samples and training.generator is None:
            raise UsageError("--num-samples needs a generator: name one with --generator.")

    @property
    def samples(self) -> int:
        """The number of inputs that a generator makes."""
        return self.num_samples or DEFAULT_SAMPLES


student_options = bundled(
    StudentArguments,
    "student",
    click.option("--num-samples", "-n", type=click.IntRange(min=2), help="Samples to generate; default: 1024."),
    click.option("--output", "-o", type=FOLDER, help="Folder for the network; load it as saved:FOLDER."),
    other_network_option,
)


def opened(
    path: Path | None, model: nn.Module, spec: SpecArguments
) -> tuple[CalibrationData | None, Specification | None]:
    """Open the data at a path, if any; also return the input specification, unless the data provides its own."""
    from dfq_plugins.data.dataset import SyntheticDataset  # noqa: PLC0415  imports torch
    from dfq_plugins.data.manifest import MANIFEST_FILE  # noqa: PLC0415  for the work itself

    if path is not None and not (path.suffix == ".npz" or (path.is_dir() and not (path / MANIFEST_FILE).is_file())):
        data = SyntheticDataset.open(path)
        return data, spec.of_set(data.spec)
    completed = spec.complete(model)
    if path is None:
        return None, completed
    from dfq_plugins.data.readers import load_source  # noqa: PLC0415  imports torch

    return list(load_source(path, completed)), completed


def cost_rows(before: tuple[str, Cost], after: tuple[str, Cost]) -> list[tuple[str, ...]]:
    """Return the costs of two networks as table rows, the second with its share of the first.

    >>> from dfq_plugins.network.cost import Cost
    >>> cost_rows(("teacher", Cost(200, 200, 1000)), ("student", Cost(100, 50, 700)))[1]
    ('student', '100 (50.0%)', '50 (25.0%)', '700 (70.0%)')
    """
    names = ("parameters", "nonzero", "macs")
    rows = [(before[0], *(f"{getattr(before[1], name):,}" for name in names))]
    pairs = [(getattr(after[1], name), getattr(before[1], name)) for name in names]
    rows.append((after[0], *(f"{value:,} ({value / max(base, 1):.1%})" for value, base in pairs)))
    return rows


def print_costs(before: tuple[str, Cost], after: tuple[str, Cost]) -> None:
    """Print the costs of two networks."""
    print_table(("Network", "Parameters", "Nonzero", "MACs"), cost_rows(before, after))
