"""`dfq demo`: the whole workflow on a small embedded network."""

from __future__ import annotations

from pathlib import Path

import click

from dfq_plugins.cli import progress
from dfq_plugins.cli.arguments import json_option
from dfq_plugins.cli.group import set_resume_hint
from dfq_plugins.cli.output import print_json
from dfq_plugins.cli.results import print_rejected, require_artifacts


@click.command()
@click.option(
    "--output",
    "-o",
    default="dfq-demo",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the report and the artifacts.",
)
@click.option("--seed", default=0, show_default=True, help="Seed; the same seed gives the same synthetic images.")
@json_option
def demo(output: Path, seed: int, as_json: bool) -> None:
    """Quantize an embedded digits network with every installed framework on synthesized images.

    Prints accuracy on held-out digits, compared with calibration on real data and on noise, and writes a report.
    """
    set_resume_hint(f"Finished work is kept in {output}: run the same command again.")
    with progress.reporting() as listener:
        from dfq_plugins.demo.run import run_demo  # noqa: PLC0415  imports torch

        result = run_demo(output, seed, [listener])
    rejected = [artifact for _, artifact in result.rejected]
    if as_json:
        print_json(result.as_dict())
    else:
        click.echo(result.render_text())
        print_rejected(rejected)
        click.echo(f"\nReport: {result.report}")
    require_artifacts(rejected)
