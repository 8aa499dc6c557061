"""What the commands that train share: their options, opening of data, and figures of a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dfq_plugins.cli.group import set_resume_hint
from dfq_plugins.cli.shared import (
    complete_spec,
    name_option,
    pairs_option,
    print_table,
    refuse_own_spec,
    spec_options,
)
from dfq_plugins.distillation.options import TrainingOptions
from dfq_plugins.errors import UsageError
from dfq_plugins.host.options import describe_options, parse_options
from dfq_plugins.host.registry import get_registry

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from dfq_plugins.network.cost import Cost
    from dfq_plugins.types import InputSpec

Command = TypeVar("Command", bound="Callable[..., Any]")

SPEC = ("shape", "mean", "std", "value_range", "num_classes")


def training_of(kind: Callable[[], type[TrainingOptions]]) -> Callable[[Command], Command]:
    """Return what adds the options of the inputs and of a training with the settings of the given record."""

    def listed(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
        if wanted:
            rows = [(row.name, row.type, row.default, row.help) for row in describe_options(kind())]
            print_table(("Setting", "Value", "Default", ""), rows)
            context.exit()

    folder = click.Path(file_okay=False, path_type=Path)
    decorators = (
        name_option("generator", "Makes the inputs from the network alone, or learns against the student."),
        pairs_option(
            "--generator-option", "-G", "generator_options", help_text="A setting of --generator, repeatable."
        ),
        click.option("--num-samples", "-n", type=click.IntRange(min=2), help="Samples that it makes; default 1024."),
        spec_options,
        pairs_option(
            "--training", "-T", "training", help_text="A setting of the training, repeatable; see --list-training."
        ),
        click.option("--max-seconds", type=float, help="Most seconds of training; the schedule is fitted into them."),
        click.option("--output", "-o", type=folder, help="Folder for the network, which saved:FOLDER loads."),
        click.option("--work", type=folder, help="Folder for checkpoints, from which an interrupted run goes on."),
        click.option("--strict", is_flag=True, help="Refuse data that was made from another model."),
        click.option(
            "--list-training",
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=listed,
            help="List the settings of the training and leave.",
        ),
    )

    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def checked_settings(given: dict[str, Any], kind: type[TrainingOptions]) -> dict[str, Any]:
    """Fail on a slip before torch is imported, and return the settings as the library takes them."""
    budget = given.pop("max_seconds")
    if budget is not None:
        given["training"] = {"max_seconds": budget, **given["training"]}
    parse_options(kind, given["training"], owner="the training")
    if given["generator"] is not None:
        get_registry().options("generator", given["generator"], given["generator_options"])
    elif given["generator_options"] or given["num_samples"]:
        raise UsageError("--generator-option and --num-samples are about a generator: name it with --generator.")
    if given["num_samples"] is None:
        given.pop("num_samples")
    work = given["work"]
    kept = "With --work FOLDER it would have kept checkpoints."
    set_resume_hint(kept if work is None else f"Checkpoints are in {work}: run the same command again to go on.")
    return given


def opened(path: Path | None, model: nn.Module, given: dict[str, Any]) -> tuple[Any, InputSpec | None]:
    """Return the data at a path, or None, and what an input looks like where the data does not say it."""
    from dfq_plugins.data.dataset import SyntheticDataset  # noqa: PLC0415  imports torch
    from dfq_plugins.data.manifest import MANIFEST_FILE  # noqa: PLC0415  for the work itself

    wanted = {name: given.pop(name) for name in SPEC}
    if path is not None and not (path.suffix == ".npz" or (path.is_dir() and not (path / MANIFEST_FILE).is_file())):
        refuse_own_spec(wanted)
        return SyntheticDataset.open(path), None
    spec = complete_spec(model, wanted)
    if path is None:
        return None, spec
    from dfq_plugins.data.readers import load_source  # noqa: PLC0415  imports torch

    return list(load_source(path, spec)), spec


def cost_rows(before: tuple[str, Cost], after: tuple[str, Cost]) -> list[tuple[str, ...]]:
    """Return the figures of two networks as rows of a table, the second with its share of the first.

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
    """Print the figures of two networks."""
    print_table(("Network", "Parameters", "Not zero", "MACs"), cost_rows(before, after))


TRAINING_ARGUMENTS = ("training", "max_seconds", "work", "strict", "generator", "generator_options")
"""What `training_options` adds, by argument name."""


def _list_training(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    """Print the settings of the training and leave."""
    if wanted:
        rows = describe_options(TrainingOptions)
        print_table(("Setting", "Value", "Default", ""), [(row.name, row.type, row.default, row.help) for row in rows])
        context.exit()


def training_options(command: Command) -> Command:
    """Add the options of the training."""
    decorators = (
        pairs_option(
            "--training", "-T", "training", help_text="A setting of the training, repeatable; see --list-training."
        ),
        click.option("--max-seconds", type=float, help="Most seconds of training; the schedule is fitted into them."),
        click.option(
            "--work",
            type=click.Path(file_okay=False, path_type=Path),
            help="Folder for checkpoints, from which an interrupted training goes on.",
        ),
        click.option("--strict", is_flag=True, help="Refuse data that was made from another model."),
        name_option(
            "generator",
            "A generator that learns beside the student and makes half of each batch (-T generator_fraction=SHARE).",
        ),
        pairs_option(
            "--generator-option", "-G", "generator_options", help_text="A setting of --generator, repeatable."
        ),
        click.option(
            "--list-training",
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_list_training,
            help="List the settings of the training and leave.",
        ),
    )
    for decorator in reversed(decorators):
        command = decorator(command)
    return command
