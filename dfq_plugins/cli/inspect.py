"""`dfq inspect`: rate how good a set is for calibration, using only the network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

import dfq_plugins
from dfq_plugins.cli import progress
from dfq_plugins.cli.arguments import (
    SpecArguments,
    json_option,
    load_model,
    other_network_option,
    report_option,
    spec_options,
)
from dfq_plugins.cli.output import announce, print_json
from dfq_plugins.data.manifest import MANIFEST_FILE

if TYPE_CHECKING:
    from torch import nn

    from dfq_plugins.data.dataset import SyntheticDataset
    from dfq_plugins.types import Inputs, Specification


@click.command()
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option("--model", "-m", "model_reference", metavar="MODEL", required=True, help="The network to calibrate.")
@click.option(
    "--weights",
    type=click.Path(dir_okay=False, path_type=Path),
    help="State dict of the model: .safetensors, .pth or .pt.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Number of CPU threads; default: torch's choice.")
@other_network_option
@spec_options
@report_option
@json_option
def inspect(
    *,
    dataset: Path,
    model_reference: str,
    weights: Path | None,
    threads: int | None,
    allow_other_network: bool,
    report: Path | None,
    as_json: bool,
    spec: SpecArguments,
) -> None:
    """Rate how good DATASET is for calibrating MODEL, without real data and without quantizing anything.

    DATASET is the folder of a synthetic set, a folder of images, or an .npz file. MODEL is torchvision:NAME,
    package.module:factory or file.py:factory. The verdict states which bit widths the set is good enough for, and why.
    """
    with progress.reporting():
        model = load_model(model_reference, weights, threads)
        data, completed = _source(dataset, model, spec)
        found = dfq_plugins.inspect(data, model, spec=completed, allow_other_network=allow_other_network)
        if report is not None:
            from dfq_plugins.report.runs import write_inspection_report  # noqa: PLC0415  imports matplotlib

            write_inspection_report(report, dataset.name, data, completed, found)
    if as_json:
        print_json(found.as_dict() | {"report": report})
        return
    click.echo(found.render_text())
    announce(report)


def _source(path: Path, model: nn.Module, spec: SpecArguments) -> tuple[SyntheticDataset | list[Inputs], Specification]:
    """Open the set and return it with its input specification; a synthetic set provides its own."""
    if (path / MANIFEST_FILE).is_file():
        data = dfq_plugins.SyntheticDataset.open(path)
        return data, spec.of_set(data.spec)
    from dfq_plugins.data.readers import load_source, require_source  # noqa: PLC0415  imports torch

    require_source(path)  # a missing source should be reported before a missing shape
    completed = spec.complete(model)
    return list(load_source(path, completed)), completed
