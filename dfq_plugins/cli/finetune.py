"""`dfq finetune`: train a quantized model on the answers of the float one, inside one framework."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import dfq_plugins
from dfq_plugins.cli import progress
from dfq_plugins.cli.group import set_resume_hint
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
from dfq_plugins.cli.training import training_options
from dfq_plugins.distillation.options import TrainingOptions
from dfq_plugins.errors import UsageError
from dfq_plugins.host.options import parse_options
from dfq_plugins.host.registry import get_registry

if TYPE_CHECKING:
    from dfq_plugins.quantization.finetune import FinetuneRun


@click.command()
@model_options
@click.argument("data", type=click.Path(path_type=Path))
@name_option("calibrator", "The framework that quantizes: torch-ao, pytorch-quantization, brevitas, ...", required=True)
@click.option("--recipe", default="w8a8", show_default=True, help="Bits of weights, activations: w8a8, w4a4, binary.")
@click.option("--output", "-o", type=click.Path(file_okay=False, path_type=Path), help="Folder for the artifacts.")
@plugin_options
@training_options
@report_option
@json_option
def finetune(model_reference: str, data: Path, **given: Any) -> None:
    """Quantize MODEL and train it on the synthetic set in the folder DATA, against the float model's answers.

    Below 8 bits this wins back what calibration alone loses. With --work, an interrupted training goes on when the same
    command is given again. Under torchrun, every process takes a part of each batch.
    """
    finetune_and_print(model_reference, data, given)


def finetune_and_print(model_reference: str, data: Path, given: dict[str, Any]) -> None:
    """Do the work of `dfq finetune`, and of `dfq quantize --finetune`."""
    weights, threads, report, as_json = (given.pop(name) for name in ("weights", "threads", "report", "as_json"))
    budget = given.pop("max_seconds")
    if budget is not None:
        given["training"] = {"max_seconds": budget, **given["training"]}
    _check(given)
    work = given["work"]
    hint = "With --work FOLDER it would have kept checkpoints." if work is None else f"Checkpoints are in {work}:"
    set_resume_hint(hint if work is None else f"{hint} run the same command again to go on.")
    with progress.reporting() as listener:
        dataset = dfq_plugins.SyntheticDataset.open(data)
        model = load_model(model_reference, weights, threads)
        run = dfq_plugins.finetune(model, dataset, **given, listeners=[listener])
        if report is not None:
            from dfq_plugins.report import runs  # noqa: PLC0415  imports matplotlib

            options = get_registry().options("calibrator", given["calibrator"], given["options"])
            runs.write_quantization_report(report, model, dataset, run, 0, options, given["output"])
    from dfq_plugins.cli.results import require_artifacts  # noqa: PLC0415  that module builds on this one

    if as_json:
        print_json(as_dict(run) | {"report": report})
    else:
        print_finetune_run(run)
        announce(report)
    require_artifacts(run)


def _check(given: dict[str, Any]) -> None:
    """Fail on a slip before torch is imported."""
    dfq_plugins.Recipe.parse(given["recipe"])
    get_registry().options("calibrator", given["calibrator"], given["options"])
    parse_options(TrainingOptions, given["training"], owner="fine-tuning")
    if given["generator"] is not None:
        get_registry().options("generator", given["generator"], given["generator_options"])
    elif given["generator_options"]:
        raise UsageError("--generator-option sets a generator: name it with --generator.")


def print_finetune_run(run: FinetuneRun) -> None:
    """Print what became of the model."""
    from dfq_plugins.cli.results import print_run  # noqa: PLC0415  that module builds on this one

    print_run(run)
    seconds = run.history[-1].seconds
    click.echo(
        f"Fine-tuned in {run.history[-1].step} steps, {seconds:.0f} s. Agreement on {run.held_out} held-out samples: "
        f"{run.agreement_before:.2%} before, {run.agreement:.2%} after."
    )


def as_dict(run: FinetuneRun) -> dict[str, Any]:
    """Return the run for `--json`."""
    from dfq_plugins.cli.results import run_as_dict  # noqa: PLC0415  that module builds on this one

    return run_as_dict(run) | {
        "agreement_before": run.agreement_before,
        "held_out": run.held_out,
        "history": [asdict(point) for point in run.history],
        "training": asdict(run.training),
    }
