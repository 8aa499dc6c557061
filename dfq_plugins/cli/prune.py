"""`dfq prune`: remove filters from a network, or set individual weights to zero, and retrain it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import dfq_plugins
from dfq_plugins.cli import progress
from dfq_plugins.cli.arguments import (
    FILE,
    ModelArguments,
    SpecArguments,
    TrainingArguments,
    json_option,
    listing,
    load_model,
    model_options,
    pairs_option,
    report_option,
    spec_options,
    training_options,
)
from dfq_plugins.cli.compression import GENERATOR_HELP, StudentArguments, opened, print_costs, student_options
from dfq_plugins.cli.output import announce, note_unknown_classes, print_json, print_table
from dfq_plugins.cli.results import print_agreement
from dfq_plugins.distillation.options import DistillOptions
from dfq_plugins.host.options import parse_options
from dfq_plugins.pruning.options import PruneTrainingOptions, PruningOptions

if TYPE_CHECKING:
    from dfq_plugins.pruning.run import PruneRun


@click.command()
@model_options
@click.argument("data", type=click.Path(path_type=Path), required=False)
@click.option("--macs", type=float, help="Share of the MACs to keep: 0.7 removes 30%.")
@click.option("--threshold", type=float, help="Remove filters with a smaller BatchNorm scale: 0.1 or 0.01.")
@click.option("--sparsity", type=float, help="Share of individual weights to set to zero: 0.5.")
@click.option(
    "--rewind-to",
    type=FILE,
    help="With --sparsity: state dict from before any training; makes and trains a lottery ticket.",
)
@pairs_option("--option", "-O", "options", help_text="Pruning setting; repeatable. See --list-options.")
@listing("--list-options", lambda: PruningOptions, "List the pruning settings and exit.")
@training_options(lambda: PruneTrainingOptions, GENERATOR_HELP)
@student_options
@spec_options
@report_option
@json_option
def prune(
    *,
    model: ModelArguments,
    data: Path | None,
    macs: float | None,
    threshold: float | None,
    sparsity: float | None,
    rewind_to: Path | None,
    options: dict[str, str],
    training: TrainingArguments,
    student: StudentArguments,
    spec: SpecArguments,
    report: Path | None,
    as_json: bool,
) -> None:
    """Prune MODEL and retrain it to reproduce its outputs, on the inputs DATA or on inputs that --generator makes.

    DATA is a synthetic set, a folder of images, or an .npz file. --macs or --threshold remove filters;
    --sparsity sets individual weights to zero. With --output, the network is written as safetensors and JSON; use it
    as the MODEL saved:FOLDER in any other command, such as dfq quantize.
    """
    parse_options(PruningOptions, options, owner="pruning")
    student.check(training, PruneTrainingOptions if rewind_to is None else DistillOptions)
    with progress.reporting() as listener:
        network = model.load()
        inputs, known = opened(data, network, spec)
        run = dfq_plugins.prune(
            network,
            inputs,
            macs=macs,
            threshold=threshold,
            sparsity=sparsity,
            rewind_to=None if rewind_to is None else load_model(model.model_reference, rewind_to, None),
            spec=known,
            options=options,
            training=training.settings,
            generator=training.generator,
            generator_options=training.generator_options,
            num_samples=student.samples,
            output=student.output,
            factory=model.model_reference,
            work=training.work,
            allow_other_network=student.allow_other_network,
            listeners=[listener],
        )
        if report is not None:
            from dfq_plugins.report import compression  # noqa: PLC0415  imports matplotlib

            compression.write_pruning_report(report, run)
    if run.spec.num_classes is None:
        note_unknown_classes()
    if as_json:
        print_json(as_dict(run) | {"report": report})
        return
    print_pruning(run)
    announce(report)


def print_pruning(run: PruneRun) -> None:
    """Print the result of a pruning."""
    what = "Filters" if run.method == "filters" else "Weights"
    rows = [(layer.name, str(layer.before), str(layer.after)) for layer in run.layers]
    print_table(("Layer", f"{what} before", "after"), rows)
    for name, reason in run.left:
        click.echo(f"  {name} was not pruned: {reason}")
    print_costs(("before", run.before), ("after", run.after))
    steps = sum(history[-1].step for history in (run.sparsity_history, run.history) if history)
    seconds = sum(history[-1].seconds for history in (run.sparsity_history, run.history) if history)
    click.echo(f"Trained for {steps} steps, {seconds:.0f} s.")
    where = f"Agreement with the original network on {run.held_out} held-out samples"
    print_agreement(run.output_agreement_before, f"{where} after pruning")
    print_agreement(run.output_agreement, f"{where} after retraining")
    for file in run.files:
        click.echo(f"Wrote {file}")


def as_dict(run: PruneRun) -> dict[str, Any]:
    """Return the run for `--json`."""
    return {
        "method": run.method,
        "before": asdict(run.before),
        "after": asdict(run.after),
        "layers": [asdict(layer) for layer in run.layers],
        "left": dict(run.left),
        "agreement_before": run.agreement_before,
        "agreement": run.agreement,
        "output_agreement": [asdict(output) for output in run.output_agreement],
        "held_out": run.held_out,
        "history": [asdict(point) for point in (*run.sparsity_history, *run.history)],
        "options": asdict(run.options),
        "training": asdict(run.training),
        "files": run.files,
    }
