"""`dfq similarity`: rank data sets by similarity to a model's training data."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from dfq_plugins.cli import progress
from dfq_plugins.cli.arguments import (
    ModelArguments,
    SpecArguments,
    json_option,
    model_options,
    other_network_option,
    spec_options,
)
from dfq_plugins.cli.output import print_json, print_table
from dfq_plugins.errors import UsageError


@click.command()
@model_options
@click.argument("sources", nargs=-1, required=True)
@other_network_option
@spec_options
@click.option(
    "--augmentation",
    type=click.Choice(["auto", "none", "pad-and-crop"]),
    default="auto",
    show_default=True,
    help="How samples are presented to the model: as they are (none), flipped, padded and cropped as in training on "
    "small images, or whichever of the two matches a source better.",
)
@json_option
def similarity(
    *,
    model: ModelArguments,
    sources: tuple[str, ...],
    allow_other_network: bool,
    augmentation: Any,
    as_json: bool,
    spec: SpecArguments,
) -> None:
    """Rank SOURCES by the BatchNorm divergence of their pooled statistics under MODEL, nearest first.

    A source is a folder of images, an .npz file, or the folder of a synthetic set. Images are normalized as the
    specification of a synthetic set among them says; without one, give --mean and --std, or --value-range.
    """
    repeated = [source for source in dict.fromkeys(sources) if sources.count(source) > 1]
    if repeated:
        raise UsageError(f"Each source may be given only once, got {repeated[0]!r} more than once. Remove the repeats.")
    with progress.reporting():
        from dfq_plugins.data.readers import load_source, open_set  # noqa: PLC0415  imports torch
        from dfq_plugins.quality.similarity import rank  # noqa: PLC0415  imports torch

        network = model.load()
        sets = {source: found for source in sources if (found := open_set(Path(source))) is not None}
        completed = spec.with_sets({source: data.spec for source, data in sets.items()}).complete(network)
        opened = {source: sets.get(source) or load_source(Path(source), completed) for source in sources}
        rows = rank(network, completed, opened, augmentation=augmentation, allow_other_network=allow_other_network)
    if as_json:
        print_json({"ranking": [asdict(row) for row in rows]})
        return
    columns = ("Rank", "Source", "Divergence", "Samples", "Shown", "Worst layer")
    print_table(
        columns,
        (
            (
                str(place),
                row.name,
                f"{row.divergence:.4g}",
                str(row.num_samples),
                "plain" if row.augmentation == "none" else "padded",
                row.worst_layer,
            )
            for place, row in enumerate(rows, start=1)
        ),
    )
