"""`dfq synthesize`: synthesize a data set from nothing but the model."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import click

import dfq_plugins
from dfq_plugins.cli import progress
from dfq_plugins.cli.arguments import (
    FOLDER,
    ModelArguments,
    SpecArguments,
    bundled,
    json_option,
    load_model,
    model_options,
    name_option,
    on_device,
    plugin_options,
    report_option,
    spec_options,
)
from dfq_plugins.cli.group import set_resume_hint
from dfq_plugins.cli.output import announce, note_unknown_classes, print_json
from dfq_plugins.errors import UsageError
from dfq_plugins.host.registry import DEFAULT_GENERATOR, get_registry
from dfq_plugins.storage.rank import Rank
from dfq_plugins.synthesis.budget import RunBudget

if TYPE_CHECKING:
    from pathlib import Path

    from dfq_plugins.data.dataset import SyntheticDataset

DEFAULT_SAMPLES = 1024


@dataclass(frozen=True)
class SetArguments:
    """The settings of a set; None or empty if not given."""

    generator: str | None
    num_samples: int | None
    seed: int | None
    options: dict[str, object]
    batch_size: int | None


_set_options = bundled(
    SetArguments,
    "wanted",
    name_option("generator", f"The generator; default: {DEFAULT_GENERATOR}, which did best in the benchmark."),
    click.option("--num-samples", "-n", type=click.IntRange(min=1), help="Number of samples; default: 1024."),
    click.option("--seed", type=int, help="Seed; the same seed gives the same bytes; default: 0."),
    click.option(
        "--batch-size", type=click.IntRange(min=1), help="Samples optimized together; default: the generator's."
    ),
    plugin_options,
)


@click.command()
@model_options
@click.option("--output", "-o", required=True, type=FOLDER, help="Folder for the set.")
@_set_options
@click.option("--extend", type=click.IntRange(min=1), metavar="N", help="Add N samples to the set in the folder.")
@click.option(
    "--max-seconds", type=click.FloatRange(min=0, min_open=True), help="Time budget; makes the best set within it."
)
@click.option("--device", help="Device to compute on: cpu, cuda (one GPU per rank), cuda:1; default: cpu.")
@spec_options
@report_option
@json_option
def synthesize(
    *,
    model: ModelArguments,
    output: Path,
    wanted: SetArguments,
    extend: int | None,
    max_seconds: float | None,
    device: str | None,
    spec: SpecArguments,
    report: Path | None,
    as_json: bool,
) -> None:
    """Synthesize inputs from nothing but MODEL, and write them to a folder with labels and outputs.

    MODEL is torchvision:NAME, package.module:factory or file.py:factory. Repeating the command resumes an interrupted
    run; --extend on an interrupted set only completes it. Under torchrun
    (torchrun --nproc-per-node 4 -m dfq_plugins synthesize ...), all processes share the work.
    """
    began, rank = time.monotonic(), Rank.current()
    budget = None if max_seconds is None else RunBudget(max_seconds)  # loading the model counts
    if extend is not None:
        wanted, spec = _continued(output, extend, wanted, spec)
    generator = wanted.generator or DEFAULT_GENERATOR
    get_registry().options("generator", generator, wanted.options)  # reports mistakes before torch is imported
    set_resume_hint(f"Finished work is kept in {output}: run the same command again to resume.")
    with progress.reporting() if rank.leads else progress.silence() as listener:
        from dfq_plugins.report.history import History  # noqa: PLC0415  not for --help

        history = History()
        loaded = load_model(model.model_reference, model.weights, model.threads or rank.threads())
        network = on_device(loaded, rank.device(device or "cpu"))
        dataset = dfq_plugins.synthesize(
            network,
            spec.complete(network),
            generator=generator,
            num_samples=wanted.num_samples or DEFAULT_SAMPLES,
            seed=wanted.seed or 0,
            options=wanted.options,
            batch_size=wanted.batch_size,
            output=output,
            max_seconds=budget,
            threads=model.threads,
            listeners=[listener, history],
        )
        seconds = time.monotonic() - began
        if not rank.leads:
            return
        if report is not None:
            from dfq_plugins.report.runs import write_synthesis_report  # noqa: PLC0415  imports matplotlib

            write_synthesis_report(report, network, dataset, history.events, seconds)
    summary = _summary(dataset, seconds) | {"report": report}
    if dataset.spec.num_classes is None and rank.leads:
        note_unknown_classes()
    if as_json:
        print_json(summary)
        return
    made = "{num_samples} samples from {generator} in {folder}, {seconds} s."
    click.echo(made.format(**summary))
    announce(report)


def _continued(
    output: Path, extend: int, wanted: SetArguments, spec: SpecArguments
) -> tuple[SetArguments, SpecArguments]:
    """Fill in settings that were not given from the existing set, which has one generator, seed and input."""
    from dfq_plugins.data.manifest import read_manifest  # noqa: PLC0415  only for --extend

    if wanted.num_samples is not None:
        raise UsageError("--extend N adds N samples, --num-samples N sets the total: give one of the two.")
    manifest = read_manifest(output)
    if manifest.state != "complete":
        click.echo(
            f"The set was interrupted: completing its {manifest.num_samples} samples without adding any.", err=True
        )
        extend = 0
    return replace(
        wanted,
        generator=wanted.generator or manifest.generator.name,
        options=wanted.options or manifest.generator.options,
        seed=manifest.seed if wanted.seed is None else wanted.seed,
        num_samples=manifest.num_samples + extend,
    ), spec.filled_in(manifest.input_spec)


def _summary(dataset: SyntheticDataset, seconds: float) -> dict[str, Any]:
    manifest = dataset.manifest
    return {
        "folder": str(dataset.folder),
        "num_samples": len(dataset),
        "generator": manifest.generator.name,
        "options": manifest.generator.options,
        "seed": manifest.seed,
        "input_spec": asdict(manifest.input_spec),
        "labels": manifest.labels,
        "model_digest": manifest.model_digest,
        "divergence": manifest.divergence,
        "iterations": [shard.iterations for shard in manifest.shards if shard.iterations is not None] or None,
        "seconds": round(seconds, 1),
    }
