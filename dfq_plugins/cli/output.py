"""Output of the commands: tables, JSON, and the location of the report."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from rich.console import Console

PLAIN_WIDTH = 120
"""Width of output to a file or pipe, in columns."""

_UNBROKEN_WIDTH = 10_000
"""Width of tables in a file or pipe, so that each row stays on one line even with long paths."""


def print_json(result: Mapping[str, Any]) -> None:
    """Print one JSON object; NaN and infinity become null."""
    click.echo(json.dumps(_jsonable(result), indent=2, allow_nan=False))


def note_unknown_classes() -> None:
    """Say, on standard error, what is assumed of a network that is not known to be a classifier."""
    click.echo(
        "It is not known whether the network is a classifier: its outputs are compared by their values, not by class. "
        "Give --num-classes N if it is one, or --num-classes 0 if it is not.",
        err=True,
    )


def console(plain_width: int = PLAIN_WIDTH) -> Console:
    """Return a console on standard output that prints text verbatim; colors only on a terminal without NO_COLOR.

    Args:
        plain_width: width in columns if the output is not a terminal.
    """
    from rich.console import Console

    width = None if sys.stdout.isatty() else plain_width
    return Console(width=width, markup=False, highlight=False, emoji=False)


def print_table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Print a table of plain-text cells."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console(_UNBROKEN_WIDTH).print(table)


def announce(report: Path | None) -> None:
    """Print the location of the report, if there is one."""
    if report is not None:
        click.echo(f"Report: {report}")


def _jsonable(value: Any) -> Any:
    """Convert a value to JSON types.

    >>> from pathlib import Path
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
