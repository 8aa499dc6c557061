"""What the commands with `--report` share."""

from __future__ import annotations

from pathlib import Path

import click

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
