"""`dfq synthesize`: make a data set from the model alone."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import dfq_plugins
from dfq_plugins.cli import progress
from dfq_plugins.cli.group import set_resume_hint
from dfq_plugins.cli.shared import (
    announce,
    complete_spec,
    json_option,
    load_model,
    model_options,
    name_option,
    on_device,
    plugin_options,
    print_json,
    report_option,
    spec_options,
)
from dfq_plugins.errors import UsageError
from dfq_plugins.host.registry import DEFAULT_GENERATOR, get_registry
from dfq_plugins.storage.rank import Rank
from dfq_plugins.synthesis.budget import RunBudget

if TYPE_CHECKING:
    from dfq_plugins.data.dataset import SyntheticDataset


@click.command()
@model_options
@click.option(
    "--output", "-o", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder of the set."
)
@name_option("generator", f"How to synthesize; default: {DEFAULT_GENERATOR}, which won the benchmark.")
@click.option("--num-samples", "-n", type=click.IntRange(min=1), help="How many samples; default 1024.")
@click.option("--extend", type=click.IntRange(min=1), metavar="N", help="Add N samples to the set in the folder.")
@click.option("--seed", type=int, help="Same seed, same bytes; default 0.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Samples optimized together; default: the generator's.")
@click.option("--max-seconds", type=click.FloatRange(min=0, min_open=True), help="The best set within this time.")
@click.option("--device", help="Where to compute: cpu, cuda (one GPU for each rank), cuda:1; default: cpu.")
@plugin_options
@spec_options
@report_option
@json_option
def synthesize(
    model_reference: str,
    weights: Path | None,
    threads: int | None,
    output: Path,
    report: Path | None,
    as_json: bool,
    device: str | None,
    max_seconds: float | None,
    **given: Any,
) -> None:
    """Synthesize inputs from MODEL alone and write them, with labels and logits, into a folder.

    MODEL is torchvision:NAME, package.module:factory or file.py:factory. An interrupted run goes on where it stopped
    when the same command is given again; --extend on a set that was interrupted only finishes it. Under torchrun
    (torchrun --nproc-per-node 4 -m dfq_plugins synthesize ...) all processes share the work.
    """
    began, rank = time.monotonic(), Rank.current()
    budget = None if max_seconds is None else RunBudget(max_seconds)  # loading the model counts
    settings = {key: given.pop(key) for key in ("generator", "num_samples", "seed", "options", "batch_size")}
    extend = given.pop("extend")
    if extend is not None:
        _continue(output, extend, settings, given)
    _check_generator(settings)
    set_resume_hint(f"What is finished is kept in {output}: run the same command again to go on.")
    with progress.reporting() if rank.leads else progress.silence() as listener:
        from dfq_plugins.report.history import History  # noqa: PLC0415  not for --help

        history = History()
        model = on_device(load_model(model_reference, weights, threads or rank.threads()), rank.device(device or "cpu"))
        dataset = dfq_plugins.synthesize(
            model,
            complete_spec(model, given),
            **{key: value for key, value in settings.items() if value is not None},
            output=output,
            max_seconds=budget,
            threads=threads,
            listeners=[listener, history],
        )
        seconds = time.monotonic() - began
        if not rank.leads:
            return
        if report is not None:
            from dfq_plugins.report.runs import write_synthesis_report  # noqa: PLC0415  imports matplotlib

            write_synthesis_report(report, model, dataset, history.events, seconds)
    summary = _summary(dataset, seconds) | {"report": report}
    if as_json:
        print_json(summary)
        return
    made = "{num_samples} samples by {generator} in {folder}, {seconds} s."
    click.echo(made.format(**summary))
    announce(report)


def _continue(output: Path, extend: int, settings: dict[str, Any], spec: dict[str, Any]) -> None:
    """Take what was not given from the set in the folder, in place: a set has one generator, seed and input."""
    from dfq_plugins.data.manifest import read_manifest  # noqa: PLC0415  only for --extend

    if settings["num_samples"] is not None:
        raise UsageError("--extend N adds N samples, --num-samples N makes it N in all: give one of the two.")
    manifest = read_manifest(output)
    if manifest.state != "complete":
        click.echo(f"The set was interrupted: finishing its {manifest.num_samples} samples, adding none.", err=True)
        extend = 0
    earlier = {"generator": manifest.generator.name, "options": manifest.generator.options, "seed": manifest.seed}
    for target, source in ((settings, earlier), (spec, asdict(manifest.input_spec))):
        target |= {key: value for key, value in source.items() if target[key] in (None, {})}
    settings["num_samples"] = manifest.num_samples + extend


def _check_generator(settings: dict[str, Any]) -> None:
    """Fail on a wrong name or option before torch and the model are loaded."""
    get_registry().options("generator", settings["generator"] or DEFAULT_GENERATOR, settings["options"])


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
