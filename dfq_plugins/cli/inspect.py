"""`dfq inspect`: how good a set is for calibration, judged by the network alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import dfq_plugins
from dfq_plugins.cli import progress
from dfq_plugins.cli.shared import complete_spec, json_option, load_model, print_json, spec_options
from dfq_plugins.errors import UsageError
from dfq_plugins.manifest import MANIFEST_FILE

if TYPE_CHECKING:
    from torch import nn

    from dfq_plugins.calibration_data import CalibrationData
    from dfq_plugins.types import InputSpec


@click.command()
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option("--model", "-m", "model_reference", metavar="MODEL", required=True, help="The network to judge with.")
@click.option(
    "--weights",
    type=click.Path(dir_okay=False, path_type=Path),
    help="State dict of the model: .safetensors, .pth or .pt.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Processor threads to use; default: torch's own.")
@spec_options
@json_option
def inspect(
    dataset: Path, model_reference: str, weights: Path | None, threads: int | None, as_json: bool, **given: Any
) -> None:
    """Judge how good DATASET is for calibrating MODEL, without real data and without quantizing anything.

    DATASET is the folder of a synthetic set, a folder of images, or an .npz file. MODEL is torchvision:NAME,
    package.module:factory or file.py:factory. The verdict says what the set is enough for, and why.
    """
    with progress.reporting():
        model = load_model(model_reference, weights, threads)
        data, spec = _source(dataset, model, given)
        found = dfq_plugins.inspect(data, model, spec=spec)
    if as_json:
        print_json(found.as_dict())
    else:
        click.echo(found.render_text())


def _source(path: Path, model: nn.Module, given: dict[str, Any]) -> tuple[CalibrationData, InputSpec | None]:
    """Open the set; a synthetic one knows its own input specification."""
    if (path / MANIFEST_FILE).is_file():
        named = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]
        if named:
            raise UsageError(f"A synthetic set brings its own input specification: leave out {', '.join(named)}.")
        return dfq_plugins.SyntheticDataset.open(path), None
    from dfq_plugins.similarity import load_source  # noqa: PLC0415  imports torch

    spec = complete_spec(model, given)
    return load_source(path, spec), spec
