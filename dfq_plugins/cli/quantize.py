"""`dfq quantize`: calibrate a model with a synthetic set inside one framework."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import dfq_plugins
from dfq_plugins.cli import progress
from dfq_plugins.cli.finetune import finetune_and_print
from dfq_plugins.cli.group import set_resume_hint
from dfq_plugins.cli.results import print_run, require_artifacts, run_as_dict
from dfq_plugins.cli.shared import (
    announce,
    json_option,
    load_model,
    model_options,
    name_option,
    plugin_options,
    print_json,
    report_option,
)
from dfq_plugins.cli.training import TRAINING_ARGUMENTS, training_options
from dfq_plugins.errors import UsageError
from dfq_plugins.host.registry import get_registry

if TYPE_CHECKING:
    from torch import nn

    from dfq_plugins.data.dataset import SyntheticDataset
    from dfq_plugins.quantization.result import QuantizationRun


@click.command()
@model_options
@click.argument("data", type=click.Path(path_type=Path))
@name_option("calibrator", "The framework that quantizes: torch-ao, pytorch-quantization, brevitas, ...", required=True)
@click.option("--recipe", default="w8a8", show_default=True, help="Bits of weights, activations: w8a8, w4a4, binary.")
@click.option("--output", "-o", type=click.Path(file_okay=False, path_type=Path), help="Folder for the artifacts.")
@plugin_options
@report_option
@click.option(
    "--hold-out",
    type=click.IntRange(min=0),
    metavar="N",
    help="With --report: leave the last N samples out of the calibration and measure on them; default: an eighth of "
    "the set, at most 128.",
)
@click.option("--finetune", is_flag=True, help="Train the quantized model afterwards, as `dfq finetune` does.")
@training_options
@json_option
def quantize(
    model_reference: str,
    data: Path,
    weights: Path | None,
    threads: int | None,
    report: Path | None,
    hold_out: int | None,
    finetune: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Quantize MODEL on the synthetic set in the folder DATA, by the framework's own calibration.

    With --output, the framework's artifacts are written there; each one is run and compared with the model before it
    is handed over.
    """
    training = {name: given.pop(name) for name in TRAINING_ARGUMENTS}
    if finetune:
        if hold_out is not None:
            raise UsageError(
                "--hold-out is for calibration alone. Give the share to hold out as -T validation_fraction=0.1."
            )
        output = {"weights": weights, "threads": threads, "report": report, "as_json": as_json}
        finetune_and_print(model_reference, data, {**given, **training, **output})
        return
    if any(training.values()):
        named = ", ".join(f"--{name.replace('_', '-').removesuffix('s')}" for name in training if training[name])
        raise UsageError(f"{named} is about fine-tuning: give --finetune as well, or use dfq finetune.")
    dfq_plugins.Recipe.parse(given["recipe"])  # this and the next line fail on a slip before torch is imported
    get_registry().options("calibrator", given["calibrator"], given["options"])
    set_resume_hint("No unfinished artifact is left behind: run the same command again.")
    if hold_out is not None and report is None:
        raise UsageError("--hold-out says what the report measures on: give --report as well, or leave it out.")
    with progress.reporting() as listener:
        dataset = dfq_plugins.SyntheticDataset.open(data)
        model = load_model(model_reference, weights, threads)
        settings = {**given, "listeners": [listener]}
        if report is None:
            run, measured = dfq_plugins.run_quantization(model, dataset, **settings), None
        else:
            run, measured = _run_with_report(model, dataset, settings, report, hold_out)
    if as_json:
        print_json(run_as_dict(run) | {"report": report, "held_out": measured})
        require_artifacts(run)
        return
    print_run(run)
    if measured is not None:
        click.echo("Agreement on {samples} held-out samples: {agreement:.2%}".format(**measured))
    announce(report)
    require_artifacts(run)


def _run_with_report(
    model: nn.Module, dataset: SyntheticDataset, settings: dict[str, Any], report: Path, hold_out: int | None
) -> tuple[QuantizationRun, dict[str, Any] | None]:
    """Quantize on all samples but those held out, and write the page; return what was measured on them."""
    from dfq_plugins.report import runs  # noqa: PLC0415  imports matplotlib

    held_out = runs.held_out_samples(len(dataset), hold_out)
    part = runs.calibration_part(dataset, held_out)
    run = dfq_plugins.run_quantization(model, part, spec=dataset.spec, **settings)
    options = get_registry().options("calibrator", settings["calibrator"], settings["options"])
    agreement = runs.write_quantization_report(report, model, dataset, run, held_out, options, settings["output"])
    return run, {"samples": held_out, "agreement": agreement} if held_out else None
