"""`dfq finetune`: train a quantized model on the float model's outputs, inside one framework."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

import dfq_plugins
from dfq_plugins.cli import progress
from dfq_plugins.cli.arguments import (
    ModelArguments,
    QuantizationArguments,
    ReconstructionArguments,
    TrainingArguments,
    json_option,
    model_options,
    quantization_options,
    reconstruction_options,
    report_option,
    training_options,
    with_classes,
)
from dfq_plugins.cli.output import announce, print_json
from dfq_plugins.cli.results import note_classes, print_agreement, print_run, require_artifacts, run_as_dict
from dfq_plugins.distillation.options import TrainingOptions
from dfq_plugins.host.registry import get_registry

if TYPE_CHECKING:
    from pathlib import Path

    from dfq_plugins.quantization.finetune import FinetuneRun

GENERATOR_HELP = "Learning generator that makes half of each batch (or -T generator_fraction=SHARE of it)."


@click.command()
@model_options
@quantization_options
@reconstruction_options
@training_options(lambda: TrainingOptions, GENERATOR_HELP)
@report_option
@json_option
def finetune(
    *,
    model: ModelArguments,
    what: QuantizationArguments,
    reconstruction: ReconstructionArguments,
    training: TrainingArguments,
    report: Path | None,
    as_json: bool,
) -> None:
    """Quantize MODEL and train it on the synthetic set in the folder DATA, against the float model's outputs.

    Below 8 bits, this recovers accuracy that calibration alone loses. With --work, repeating the command resumes an
    interrupted training. Under torchrun, every process takes a part of each batch.
    """
    finetune_and_print(model, what, reconstruction, training, report, as_json=as_json)


def finetune_and_print(
    model: ModelArguments,
    what: QuantizationArguments,
    reconstruction: ReconstructionArguments,
    training: TrainingArguments,
    report: Path | None,
    *,
    as_json: bool,
) -> None:
    """Run `dfq finetune`, or `dfq quantize --finetune`."""
    what.check()
    settings = reconstruction.settings
    training.check(TrainingOptions, "fine-tuning")
    with progress.reporting() as listener:
        dataset = dfq_plugins.SyntheticDataset.open(what.data)
        network = model.load()
        run = dfq_plugins.finetune(
            network,
            dataset,
            spec=with_classes(dataset.spec, what.num_classes),
            calibrator=what.calibrator,
            recipe=what.recipe,
            options=what.options,
            reconstruct=settings,
            output=what.output,
            training=training.settings,
            generator=training.generator,
            generator_options=training.generator_options,
            work=training.work,
            allow_other_network=what.allow_other_network,
            listeners=[listener],
        )
        if report is not None:
            from dfq_plugins.report import runs  # noqa: PLC0415  imports matplotlib

            options = get_registry().options("calibrator", what.calibrator, what.options)
            runs.write_quantization_report(report, network, dataset, run, 0, options, what.output)
    note_classes(run, dataset.spec, what.num_classes)
    if as_json:
        print_json(as_dict(run) | {"report": report})
    else:
        print_finetune_run(run)
        announce(report)
    require_artifacts(run.rejected)


def print_finetune_run(run: FinetuneRun) -> None:
    """Print the result of a fine-tuning."""
    print_run(run)
    seconds = run.history[-1].seconds
    click.echo(f"Fine-tuned for {run.history[-1].step} steps, {seconds:.0f} s.")
    print_agreement(run.output_agreement_before, f"Agreement on {run.held_out} held-out samples before")
    print_agreement(run.output_agreement, f"Agreement on {run.held_out} held-out samples after")


def as_dict(run: FinetuneRun) -> dict[str, Any]:
    """Return the run for `--json`."""
    return run_as_dict(run) | {
        "agreement_before": run.agreement_before,
        "output_agreement_before": [asdict(output) for output in run.output_agreement_before],
        "held_out": run.held_out,
        "history": [asdict(point) for point in run.history],
        "training": run.training.as_record(),
    }
