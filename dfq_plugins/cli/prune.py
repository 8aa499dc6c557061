"""`dfq prune`: remove filters from a network, or set single weights to zero, and train what is left."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import dfq_plugins
from dfq_plugins.cli import progress
from dfq_plugins.cli.shared import (
    announce,
    json_option,
    load_model,
    model_options,
    pairs_option,
    print_json,
    print_table,
    report_option,
)
from dfq_plugins.cli.training import checked_settings, opened, print_costs, training_of
from dfq_plugins.distillation.options import DistillOptions
from dfq_plugins.host.options import describe_options, parse_options
from dfq_plugins.pruning.options import PruneTrainingOptions, PruningOptions

if TYPE_CHECKING:
    from dfq_plugins.pruning.run import PruneRun


def _list_options(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    """Print the settings of the pruning and leave."""
    if wanted:
        rows = [(row.name, row.type, row.default, row.help) for row in describe_options(PruningOptions)]
        print_table(("Setting", "Value", "Default", ""), rows)
        context.exit()


@click.command()
@model_options
@click.argument("data", type=click.Path(path_type=Path), required=False)
@click.option("--macs", type=float, help="Share of the MACs that is left: 0.7 removes 30 %.")
@click.option("--threshold", type=float, help="Remove filters with a smaller BatchNorm scale: 0.1 or 0.01.")
@click.option("--sparsity", type=float, help="Share of single weights that is set to zero: 0.5.")
@click.option(
    "--rewind-to",
    type=click.Path(dir_okay=False, path_type=Path),
    help="With --sparsity: the state dict from before any training; makes and trains a lottery ticket.",
)
@pairs_option("--option", "-O", "options", help_text="A setting of the pruning, repeatable; see --list-options.")
@click.option(
    "--list-options",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_options,
    help="List the settings of the pruning and leave.",
)
@training_of(lambda: PruneTrainingOptions)
@report_option
@json_option
def prune(
    model_reference: str,
    weights: Path | None,
    threads: int | None,
    data: Path | None,
    rewind_to: Path | None,
    report: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Prune MODEL on the inputs DATA, or on those that --generator makes, so that it still answers as it did.

    DATA is a synthetic set, a folder of images, or an .npz file. --macs or --threshold remove filters;
    --sparsity sets single weights to zero. With --output, the network is written as safetensors and JSON, and
    saved:FOLDER is then a MODEL of every other command, such as dfq quantize.
    """
    parse_options(PruningOptions, given["options"], owner="pruning")
    given = checked_settings(given, PruneTrainingOptions if rewind_to is None else DistillOptions)
    with progress.reporting() as listener:
        model = load_model(model_reference, weights, threads)
        inputs, spec = opened(data, model, given)
        if rewind_to is not None:
            given["rewind_to"] = load_model(model_reference, rewind_to, None)
        run = dfq_plugins.prune(model, inputs, spec=spec, factory=model_reference, **given, listeners=[listener])
        if report is not None:
            from dfq_plugins.report import compression  # noqa: PLC0415  imports matplotlib

            compression.write_pruning_report(report, run)
    if as_json:
        print_json(as_dict(run) | {"report": report})
        return
    print_pruning(run)
    announce(report)


def print_pruning(run: PruneRun) -> None:
    """Print what became of the network."""
    what = "Filters" if run.method == "filters" else "Weights"
    rows = [(layer.name, str(layer.before), str(layer.after)) for layer in run.layers]
    print_table(("Layer", f"{what} before", "after"), rows)
    for name, reason in run.left:
        click.echo(f"  {name} stays whole: {reason}")
    print_costs(("before", run.before), ("after", run.after))
    steps = sum(history[-1].step for history in (run.sparsity_history, run.history) if history)
    seconds = sum(history[-1].seconds for history in (run.sparsity_history, run.history) if history)
    click.echo(
        f"Trained in {steps} steps, {seconds:.0f} s. Agreement with the network as it was on {run.held_out} held-out "
        f"samples: {run.agreement_before:.2%} when it was pruned, {run.agreement:.2%} after."
    )
    for file in run.files:
        click.echo(f"Written: {file}")


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
        "held_out": run.held_out,
        "history": [asdict(point) for point in (*run.sparsity_history, *run.history)],
        "options": asdict(run.options),
        "training": asdict(run.training),
        "files": run.files,
    }
