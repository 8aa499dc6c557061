"""`dfq quantize`: calibrate a model with a synthetic set inside one framework."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import dfq_plugins
from dfq_plugins.cli import progress
from dfq_plugins.cli.group import set_resume_hint
from dfq_plugins.cli.shared import (
    json_option,
    load_model,
    model_options,
    name_option,
    plugin_options,
    print_json,
    print_table,
)
from dfq_plugins.registry import get_registry

if TYPE_CHECKING:
    from dfq_plugins.pipeline import QuantizationRun
    from dfq_plugins.types import Coverage


@click.command()
@model_options
@click.argument("data", type=click.Path(path_type=Path))
@name_option("calibrator", "The framework that quantizes: torch-ao, pytorch-quantization, brevitas, ...", required=True)
@click.option("--recipe", default="w8a8", show_default=True, help="Bits of weights and activations: w8a8, w4a8, w4a4.")
@click.option("--output", "-o", type=click.Path(file_okay=False, path_type=Path), help="Folder for the artefacts.")
@plugin_options
@json_option
def quantize(
    model_reference: str, data: Path, weights: Path | None, threads: int | None, as_json: bool, **given: Any
) -> None:
    """Quantize MODEL on the synthetic set in the folder DATA, by the framework's own calibration.

    With --output, the framework's artefacts are written there; each one is run and compared with the model before it
    is handed over.
    """
    dfq_plugins.Recipe.parse(given["recipe"])  # this and the next line fail on a slip before torch is imported
    get_registry().options("calibrator", given["calibrator"], given["options"])
    set_resume_hint("No unfinished artefact is left behind: run the same command again.")
    with progress.reporting() as listener:
        dataset = dfq_plugins.SyntheticDataset.open(data)
        run = dfq_plugins.run_quantization(
            load_model(model_reference, weights, threads),
            dataset,
            **given,
            listeners=[listener],
        )
    if as_json:
        print_json(_as_dict(run))
    else:
        _print_run(run)


def _print_run(run: QuantizationRun) -> None:
    click.echo(f"Quantized by {run.calibrator} at {run.recipe}: {len(run.coverage.quantized)} layers.")
    for (weight, activation), count in _formats(run.coverage).items():
        click.echo(f"  {count} x weights: {weight or 'float'}; inputs: {activation or 'float'}")
    for name, reason in run.coverage.floating:
        click.echo(f"  {name} stays in float: {reason}")
    click.echo(f"Top-1 agreement with the float model on the data: {run.agreement:.2%}")
    rows = [
        (str(artifact.path), artifact.format, f"{artifact.size_bytes / 1000:.1f} kB", f"{check.name}: {check.detail}")
        for artifact in run.artifacts
        for check in artifact.checks
    ]
    if rows:
        print_table(("Artefact", "Format", "Size", "Check passed"), rows)


def _formats(coverage: Coverage) -> Counter[tuple[str | None, str | None]]:
    return Counter((layer.weight, layer.activation) for layer in coverage.quantized)


def _as_dict(run: QuantizationRun) -> dict[str, Any]:
    return {
        "calibrator": run.calibrator,
        "recipe": str(run.recipe),
        "agreement": run.agreement,
        "coverage": asdict(run.coverage),
        "artifacts": [asdict(artifact) for artifact in run.artifacts],
    }
