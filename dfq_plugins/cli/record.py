"""`dfq record`: record once how a model's layers respond to its owner's data."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dfq_plugins.cli import progress
from dfq_plugins.cli.arguments import (
    ModelArguments,
    SpecArguments,
    bundled,
    json_option,
    model_options,
    on_device,
    spec_options,
)
from dfq_plugins.cli.output import print_json
from dfq_plugins.host.options import parse_options
from dfq_plugins.recording.options import STATISTICS, RecordingOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfq_plugins.recording.record import ActivationRecord

_DEFAULTS = RecordingOptions()


def _words(flag: str, name: str, help_text: str) -> Callable[[Any], Any]:
    """Return an option for comma-separated words, passed as a tuple."""

    def split(_context: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[str, ...] | None:
        return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())

    return click.option(flag, name, metavar="NAME,...", callback=split, help=help_text)


@dataclass(frozen=True)
class RecordingArguments:
    """The settings of a recording; None if not given."""

    statistics: tuple[str, ...] | None
    layers: tuple[str, ...] | None
    units: str | None
    coefficients: float | None
    dropout_filters: int | None
    labels: str | None
    epsilon: float | None
    delta: float | None
    clip_norm: float | None
    max_memory: float | None
    seed: int | None

    def checked(self) -> RecordingOptions:
        """Return the checked settings as an options record.

        Raises:
            UsageError: a value is invalid.
        """
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return parse_options(RecordingOptions, given, owner="the recording")


_recording_options = bundled(
    RecordingArguments,
    "recording",
    _words("--statistics", "statistics", f"What to record, of {', '.join(STATISTICS)}; default: all of these."),
    _words("--layers", "layers", "Modules whose inputs to record; default: every weighted layer except the first."),
    click.option("--units", type=click.Choice(["full", "channel"]), help="What a unit is; default: every activation."),
    click.option(
        "--coefficients", type=float, help=f"Share of spectral coefficients; default: {_DEFAULTS.coefficients}."
    ),
    click.option("--dropout-filters", type=int, help="Dropout filters to record all layers under; default: 0."),
    click.option(
        "--labels",
        type=click.Choice(["auto", "teacher"]),
        help="Classes from the data if it has labels, or always from the model's predictions.",
    ),
    click.option("--epsilon", type=float, help="Add noise: privacy budget for adding or removing one sample."),
    click.option("--delta", type=float, help=f"Probability that the budget fails; default: {_DEFAULTS.delta:g}."),
    click.option(
        "--clip-norm", type=float, help="Maximum norm of a sample's units; default: measured on noise inputs."
    ),
    click.option("--max-memory", type=float, help=f"GiB for the statistics; default: {_DEFAULTS.max_memory:g}."),
    click.option("--seed", type=int, help="Seed of the dropout filters; default: 0."),
)


@click.command()
@model_options
@click.argument("data")
@click.option(
    "--output",
    "-o",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the record; must be new or empty.",
)
@_recording_options
@click.option("--device", default="cpu", show_default=True, help="Device to compute on: cpu, cuda, cuda:1.")
@spec_options
@json_option
def record(
    *,
    model: ModelArguments,
    data: str,
    output: Path,
    recording: RecordingArguments,
    device: str,
    as_json: bool,
    spec: SpecArguments,
) -> None:
    """Record how MODEL's layers respond to DATA, so that inputs can be synthesized later without the data.

    DATA is an .npz file (arrays `inputs` and, optionally, `labels`), a folder of images, or the folder of a synthetic
    set. Without labels, the model predicts the classes. The record-* generators use the record:
    dfq synthesize MODEL --generator record-spectral --option record=FOLDER.
    """
    options = recording.checked()
    began = time.monotonic()
    with progress.reporting() as listener:
        import dfq_plugins  # noqa: PLC0415  its names import torch
        from dfq_plugins.recording.data import LabelledFile  # noqa: PLC0415  imports torch
        from dfq_plugins.recording.record import require_free  # noqa: PLC0415  imports torch
        from dfq_plugins.recording.run import single_spec  # noqa: PLC0415  imports torch

        require_free(output)
        network = on_device(model.load(), device)
        completed = spec.complete(network)
        batches = LabelledFile(Path(data), single_spec(completed))
        made = dfq_plugins.record(network, batches, completed, output=output, options=options, listeners=[listener])
    summary = _summary(made, time.monotonic() - began)
    if as_json:
        print_json(summary)
        return
    click.echo("{num_samples} samples recorded in {folder}, {bytes:,} bytes, {seconds} s.".format(**summary))
    click.echo("What the record reveals:")
    for sentence in summary["reveals"]:
        click.echo(f"  - {sentence}")


def _summary(made: ActivationRecord, seconds: float) -> dict[str, Any]:
    info = made.info
    return {
        "folder": str(made.folder),
        "model_digest": info.model_digest,
        "num_samples": sum(info.class_counts),
        "class_counts": info.class_counts,
        "labels": info.labels,
        "statistics": info.statistics,
        "layers": {layer.name: layer.units for layer in info.layers},
        "dropout_filters": info.dropout_filters,
        "jitter": info.jitter,
        "epsilon": None if info.noise is None else info.noise.epsilon,
        "reveals": info.reveals,
        "bytes": sum(file.stat().st_size for file in made.folder.iterdir()),
        "seconds": round(seconds, 1),
    }
