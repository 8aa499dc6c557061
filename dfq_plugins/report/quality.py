"""Report sections on the quality of a set and the coverage of a quantization."""

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
COVERAGE = "Quantization coverage"


def quality_section(found: Inspection) -> Section:
    """Return the section with the verdict on one set, its reason and all underlying figures."""
    origin = (
        "The verdict uses only the network, through the statistics that its BatchNorm layers recorded in training. It "
        "was compared with measured accuracies on real test samples for a few networks, and predicted them well for "
        "one and roughly for the others: a bad score is a good reason to make a better set, but a good score is no "
        "proof."
    )
    entries = [(name, f"{value} ({meaning})" if meaning else value) for name, value, meaning in found.figures()]
    entries += [("not available", note) for note in found.notes]
    return Section(
        "Is the set good enough?", (f"Verdict: {found.verdict}. {found.reason}", origin), (Facts(tuple(entries)),)
    )


def comparison_table(sets: Mapping[str, Inspection], highlighted: str = "") -> Table:
    """Return a table with one row of figures per set.

    Args:
        sets: inspections by name of the set.
        highlighted: name of the set to highlight.
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
        "Score from 0 to 100, higher is better. Surprise in nats and range error in octaves, averaged over layers: the "
        "worse of the two determines the score. Confidence and diversity do not affect it."
    )
    marked = tuple(index for index, name in enumerate(sets) if name == highlighted)
    return Table(columns, rows, caption=caption, highlighted=marked, decimals=3)


def comparison_section(sets: Mapping[str, Inspection], highlighted: str = "") -> Section:
    """Return the section with one row of figures per set; see `comparison_table`."""
    text = (
        "Each set is rated using only the network, by the statistics that its BatchNorm layers recorded in training; "
        "no accuracy is used. The verdict states which bit widths a set is good enough for."
    )
    return Section("Which sets are good enough", (text,), (comparison_table(sets, highlighted),))


def divergences(sets: Mapping[str, Inspection]) -> Section | None:
    """Return the plot of each set's divergence by layer; None if the network has no recorded statistics."""
    layers = [layer.name for layer in next(iter(sets.values())).layers]
    if not layers:
        return None
    series = {name: [layer.divergence for layer in found.layers] for name, found in sets.items()}
    return divergence_section(layers, series, "Layers from input (top) to output (bottom).")


def range_section(sets: Mapping[str, Inspection]) -> Section | None:
    """Return the plot of observed and recorded activation ranges by layer; None without BatchNorm layers."""
    first = [layer for layer in next(iter(sets.values())).layers if layer.expected_range is not None]
    if not first:
        return None
    names = {layer.name for layer in first}
    series = [(RECORDED, tuple(layer.expected_range or math.nan for layer in first))]
    for name, found in sets.items():
        values = (layer.observed_range or math.nan for layer in found.layers if layer.name in names)
        series.append((name, tuple(values)))
    text = (
        "Calibration turns the range of each layer's activations into the step size between integers. If calibration "
        "data make activations too narrow, real inputs are clipped; if they make them too wide, the few available "
        "steps are wasted. In training, each channel after a BatchNorm layer was a Gaussian with known parameters, so "
        "the expected range is known."
    )
    plot = LayerPlot(
        tuple(layer.name for layer in first),
        tuple(series),
        "range that holds 99% of the values (log scale)",
        "The closer a set is to the recorded range, the better. Layers from input (top) to output (bottom).",
    )
    return Section("Activation ranges", (text,), (plot,))


def coverage_section(title: str, coverage: Coverage) -> Section:
    """Return the section that lists the layers left in floating point with the reason, and the quantized ones.

    Args:
        title: framework and recipe.
        coverage: coverage reported by the framework.
    """
    grouped = floating_by_reason(coverage)
    table = coverage_table(title, coverage)
    if not grouped:
        text = "The framework reports every layer as quantized."
        return Section(COVERAGE, (text,), (table,))
    text = "These parts still compute in floating point. Check them if your device does not support it."
    places = tuple((reason, ", ".join(names)) for reason, names in grouped.items())
    return Section(COVERAGE, (text,), (Facts(places), dataclasses.replace(table, notes=())))
