"""The sections on how good a set is and how well a network was quantized, from the records of `dfq_plugins.quality`."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from dfq_plugins.report.content import Facts, LayerPlot, Section, Table
from dfq_plugins.report.sections import coverage_table, divergence_section, floating_by_reason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dfq_plugins.quality.inspection import Inspection
    from dfq_plugins.report.content import Cell
    from dfq_plugins.types import Coverage

RECORDED = "recorded in training"
COVERAGE = "What is not quantized, and what is"


def quality_section(found: Inspection) -> Section:
    """Return the section with the verdict on one set, its reason and every figure behind it."""
    origin = (
        "The verdict is judged by the network alone, from what its BatchNorm layers recorded in training. It was "
        "compared with measured accuracies on real test samples of a few networks, and predicted them well on one and "
        "roughly on others: a bad score is a good reason to make a better set, a good score is no proof."
    )
    entries = [(name, f"{value} ({meaning})" if meaning else value) for name, value, meaning in found.figures()]
    entries += [("not given", note) for note in found.notes]
    return Section(
        "Is the set good enough?", (f"Verdict: {found.verdict}. {found.reason}", origin), (Facts(tuple(entries)),)
    )


def comparison_table(sets: Mapping[str, Inspection], highlighted: str = "") -> Table:
    """Return one row of figures for each of several sets.

    Args:
        sets: by name.
        highlighted: the set that the reader should see first.
    """
    columns = ("Set", "Score", "Verdict", "Surprise", "Range error", "Confidence", "Diversity")
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            name,
            None if found.score is None else round(found.score),
            found.verdict,
            found.surprise,
            found.range_error,
            found.confidence,
            found.diversity,
        )
        for name, found in sets.items()
    )
    caption = (
        "Score from 0 to 100, higher is better. Surprise in nats and range error in octaves, averages over layers: the "
        "worse of them makes the score. Confidence and diversity are no part of it."
    )
    marked = tuple(index for index, name in enumerate(sets) if name == highlighted)
    return Table(columns, rows, caption=caption, highlighted=marked, decimals=3)


def comparison_section(sets: Mapping[str, Inspection], highlighted: str = "") -> Section:
    """Return the section with one row of figures for each of several sets; see `comparison_table`."""
    text = (
        "The network alone judges each set, by what its BatchNorm layers recorded in training; no accuracy is used. "
        "The verdict says what a set is enough for."
    )
    return Section("Which sets are good enough", (text,), (comparison_table(sets, highlighted),))


def divergences(sets: Mapping[str, Inspection]) -> Section | None:
    """Return the plot of each set's divergence layer by layer; None where the network records no statistics."""
    layers = [layer.name for layer in next(iter(sets.values())).layers]
    if not layers:
        return None
    series = {name: [layer.divergence for layer in found.layers] for name, found in sets.items()}
    return divergence_section(layers, series, "Layers from input (top) to output (bottom).")


def range_section(sets: Mapping[str, Inspection]) -> Section | None:
    """Return the plot of activation ranges by layer beside the recorded ones; None without BatchNorm layers."""
    first = [layer for layer in next(iter(sets.values())).layers if layer.expected_range is not None]
    if not first:
        return None
    names = {layer.name for layer in first}
    series = [(RECORDED, tuple(layer.expected_range or math.nan for layer in first))]
    for name, found in sets.items():
        values = (layer.observed_range or math.nan for layer in found.layers if layer.name in names)
        series.append((name, tuple(values)))
    text = (
        "Calibration turns the width of each layer's activations into the step between two whole numbers. Data that "
        "make activations too narrow cut off what real inputs need; data that make them too wide waste the few steps "
        "there are. What a BatchNorm layer lets through was, in training, a Gaussian for each channel, so the "
        "width to expect is known."
    )
    plot = LayerPlot(
        tuple(layer.name for layer in first),
        tuple(series),
        "width that holds 99 % of the values (log scale)",
        "Best is where a set lies on the recorded width. Layers from input (top) to output (bottom).",
    )
    return Section("How wide the activations are", (text,), (plot,))


def coverage_section(title: str, coverage: Coverage) -> Section:
    """Return the section that says what stays in floating point and why, and lists what does not.

    Args:
        title: framework and recipe.
        coverage: as the framework reports it.
    """
    grouped = floating_by_reason(coverage)
    table = coverage_table(title, coverage)
    if not grouped:
        text = "The framework reports every layer as quantized."
        return Section(COVERAGE, (text,), (table,))
    text = "These places still compute in floating point. On a device without it they have to be looked at."
    places = tuple((reason, ", ".join(names)) for reason, names in grouped.items())
    return Section(COVERAGE, (text,), (Facts(places), dataclasses.replace(table, notes=())))
