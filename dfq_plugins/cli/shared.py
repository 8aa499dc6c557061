"""What the commands share: arguments for the model, its input and plugin options, and output."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dfq_plugins.errors import DfqError, UsageError
from dfq_plugins.host.registry import get_registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from click.shell_completion import CompletionItem
    from rich.console import Console
    from torch import nn

    from dfq_plugins.host.registry import Kind
    from dfq_plugins.types import InputSpec

Command = TypeVar("Command", bound="Callable[..., Any]")

PLAIN_WIDTH = 120
"""Columns of a table that goes into a file or a pipe."""

_UNBROKEN_WIDTH = 10_000
"""For tables that go to a file or another program: a row stays one line, however long its paths are."""


def numbers_option(flag: str, number: type[int | float], help_text: str) -> Callable[[Command], Command]:
    """Return an option that takes numbers with commas between them, `3,32,32`, and arrives as a tuple."""

    def convert(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[float, ...] | None:
        try:
            return None if text is None else tuple(number(part) for part in text.split(","))
        except ValueError:
            message = f"{text!r} is not a list of {number.__name__} numbers with commas, e.g. 3,32,32."
            raise click.BadParameter(message, context, parameter) from None

    return click.option(flag, metavar="N,N,...", callback=convert, help=help_text)


def pairs_option(*flags: str, help_text: str) -> Callable[[Command], Command]:
    """Return a repeatable `key=value` option that arrives as one dictionary of texts."""

    def convert(context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
        pairs: dict[str, str] = {}
        for text in texts:
            key, _, setting = text.partition("=")
            name = key.strip().replace("-", "_")
            if not name or "=" not in text:
                raise click.BadParameter(f"{text!r} is not of the form KEY=VALUE.", context, parameter)
            if name in pairs:
                raise click.BadParameter(f"{name!r} is given twice.", context, parameter)
            pairs[name] = setting.strip()
        return pairs

    return click.option(*flags, multiple=True, metavar="KEY=VALUE", callback=convert, help=help_text)


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object for machines.")

plugin_options = pairs_option(
    "--option", "-O", "options", help_text="A setting of the plugin, repeatable; `dfq plugins NAME` lists them."
)


def model_options(command: Command) -> Command:
    """Add MODEL, --weights and --threads."""
    weights = click.Path(dir_okay=False, path_type=Path)
    return _decorate(
        command,
        click.argument("model_reference", metavar="MODEL"),
        click.option("--weights", type=weights, help="State dict of the model: .safetensors, .pth or .pt."),
        click.option("--threads", type=click.IntRange(min=1), help="Processor threads to use; default: torch's own."),
    )


def spec_options(command: Command) -> Command:
    """Add the options that make up an `InputSpec`; what is not given is inferred from the model."""
    return _decorate(
        command,
        numbers_option("--shape", int, "Shape of one input, channels first: 3,32,32."),
        numbers_option("--mean", float, "Mean that is subtracted from each channel."),
        numbers_option("--std", float, "Standard deviation that each channel is divided by."),
        numbers_option("--value-range", float, "Lowest and highest raw value: 0,1."),
        click.option("--num-classes", type=click.IntRange(min=1), help="Width of the class logits."),
    )


def name_option(kind: Kind, help_text: str, *, required: bool = False) -> Callable[[Command], Command]:
    """Return `--generator` or `--calibrator`, completed by the shell from what is installed."""

    def complete(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str | CompletionItem]:
        with warnings.catch_warnings(), contextlib.suppress(DfqError):  # nothing but names into the user's prompt
            warnings.simplefilter("ignore")
            return [name for name in get_registry().of(kind) if name.startswith(incomplete)]
        return []

    return click.option(f"--{kind}", metavar="NAME", required=required, help=help_text, shell_complete=complete)


def load_model(reference: str, weights: Path | None, threads: int | None) -> nn.Module:
    """Load the model that the command line names, and set the number of threads."""
    import torch

    from dfq_plugins.network import load as models  # noqa: PLC0415  imports torch

    if threads is not None:
        torch.set_num_threads(threads)
    return models.load_model(reference, weights)


def on_device(model: nn.Module, device: str) -> nn.Module:
    """Move a model to where it is to compute.

    Raises:
        UsageError: there is no such device.
    """
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"--device {device} cannot be used ({reason}). Choose cpu, or a GPU that torch sees."
        ) from error


def refuse_own_spec(given: Mapping[str, Any]) -> None:
    """Refuse an input specification beside a synthetic set, which brings its own.

    Raises:
        UsageError: an option of it was given.
    """
    if named := [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]:
        raise UsageError(f"A synthetic set brings its own input specification: leave out {', '.join(named)}.")


def complete_spec(model: nn.Module, given: Mapping[str, Any]) -> InputSpec:
    """Return the model's input specification from what was given and what can be inferred."""
    from dfq_plugins.network import specification as checks  # noqa: PLC0415  imports torch

    pair = given["value_range"]
    if pair is not None and len(pair) != 2:  # noqa: PLR2004  lowest and highest
        raise UsageError(
            f"--value-range takes the lowest and the highest value, got {len(pair)} numbers. Give e.g. 0,1."
        )
    return checks.complete_spec(model, **given, registry=get_registry())


def print_json(result: Mapping[str, Any]) -> None:
    """Print one JSON object; JSON knows no infinity, which becomes null."""
    click.echo(json.dumps(_jsonable(result), indent=2, allow_nan=False))


def console(plain_width: int = PLAIN_WIDTH) -> Console:
    """Return a console on standard output that prints text as it is; colors only on a terminal without NO_COLOR.

    Args:
        plain_width: columns where the output is no terminal.
    """
    from rich.console import Console

    width = None if sys.stdout.isatty() else plain_width
    return Console(width=width, markup=False, highlight=False, emoji=False)


def print_table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Print a table whose cells are plain text."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console(_UNBROKEN_WIDTH).print(table)


def _jsonable(value: Any) -> Any:
    """Return a value in JSON's own types.

    >>> _jsonable({"file": Path("a"), "loss": (0.5, float("nan"))})
    {'file': 'a', 'loss': [0.5, None]}
    """
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | None) else str(value)


def _decorate(command: Command, *decorators: Callable[[Command], Command]) -> Command:
    for decorator in reversed(decorators):
        command = decorator(command)
    return command


report_option = click.option(
    "--report",
    metavar="FILE",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Write a page about the run: one HTML file that needs no network.",
)


def announce(report: Path | None) -> None:
    """Say where the page is, if there is one."""
    if report is not None:
        click.echo(f"Report: {report}")
