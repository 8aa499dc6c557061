"""What the commands print: tables, JSON, and where the report is."""

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
"""Columns of a table that goes into a file or a pipe."""

_UNBROKEN_WIDTH = 10_000
"""For tables that go to a file or another program: a row stays one line, however long its paths are."""


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


def announce(report: Path | None) -> None:
    """Say where the page is, if there is one."""
    if report is not None:
        click.echo(f"Report: {report}")


def _jsonable(value: Any) -> Any:
    """Return a value in JSON's own types.

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
