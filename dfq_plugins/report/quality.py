"""The sections on how good a set is and how well a network was quantized, from the records of `dfq_plugins.quality`."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from dfq_plugins.report.record import Facts, LayerPlot, Section, Table
from dfq_plugins.report.sections import coverage_table, divergence_section, floating_by_reason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dfq_plugins.quality.fidelity import Fidelity
    from dfq_plugins.quality.record import Inspection
    from dfq_plugins.report.record import Block, Cell
    from dfq_plugins.types import Coverage

RECORDED = "recorded in training"
COVERAGE = "What is not quantized, and what is"
PER_CENT = 100


def quality_section(found: Inspection) -> Section:
    """Return the section with the verdict on one set, its reason and every figure behind it."""
    origin = (
        "The verdict is judged by the network alone, from what its BatchNorm layers recorded in training. It was "
        "compared with measured accuracies on real test images of several networks, but for yours it is a prediction."
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
    columns = (
        "Set",
        "Score",
        "Divergence",
        "Surprise",
        "Range error",
        "Confidence",
        "Label balance",
        "Diversity",
        "Verdict",
    )
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            name,
            found.score,
            found.divergence,
            found.surprise,
            found.range_error,
            found.confidence,
            found.label_balance,
            found.diversity,
            found.verdict,
        )
        for name, found in sets.items()
    )
    caption = (
        "Score from 0 to 100, higher is better. Divergence and surprise in nats and range error in octaves, averages "
        "over layers, lower is better; confidence, label balance and diversity are not part of the score."
    )
    marked = tuple(index for index, name in enumerate(sets) if name == highlighted)
    return Table(columns, rows, caption=caption, highlighted=marked)


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


def calibration_section(agreement: float, held_out: int, fidelity: Fidelity) -> Section:
    """Return the section on how well the quantized network does what the float network does.

    Args:
        agreement: share of samples that both put into the same class; NaN for no classifiers.
        held_out: samples that calibration did not see and this was measured on; 0 where it was measured on its own.
        fidelity: noise by layer.
    """
    where = (
        f"{held_out} synthetic samples that took no part in the calibration"
        if held_out
        else "the calibration samples themselves, because none were held out"
    )
    text = [f"Measured on {where}. Real test images are the last word; run them before you ship."]
    if not math.isnan(agreement):
        text.append(
            f"On {PER_CENT * agreement:.1f} % of the samples the quantized network names the same class as the float "
            "network. Compare it with the teacher's confidence below: where the float network itself is unsure of a "
            "synthetic sample, a small error names another class."
        )
    text.append(
        "The table shows how much noise the whole numbers add at each layer: the signal-to-quantization-noise "
        "ratio in decibels. 20 dB is an error of a tenth of the signal, 40 dB of a hundredth; every bit is worth "
        "about 6 dB. Noise adds up from layer to layer. The layers on top are the first to look at when accuracy is "
        "lost."
    )
    return Section("How well the quantized network follows", tuple(text), _fidelity_blocks(fidelity))


def _fidelity_blocks(fidelity: Fidelity) -> tuple[Block, ...]:
    rows = tuple((layer.name, _decibels(layer.decibels)) for layer in fidelity.layers)
    caption = f"{len(rows)} layers on {fidelity.num_samples} samples, the noisiest first."
    shown = 12
    columns = ("Layer", "Signal to noise (dB)")
    blocks: list[Block] = [Table(columns, rows[:shown], caption=caption, decimals=1)]
    if rows[shown:]:
        blocks.append(Table(columns, rows[shown:], caption=f"The other {len(rows) - shown}", decimals=1, folded=True))
    if fidelity.unmatched:
        title = f"Quantized operations that could not be compared: {len(fidelity.unmatched)}"
        blocks.append(Facts(fidelity.unmatched, title, folded=True))
    return tuple(blocks)


def _decibels(value: float) -> Cell:
    return "exact" if math.isinf(value) and value > 0 else value


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
