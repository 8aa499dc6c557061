"""The demo's report: its own sections, and the shared ones with the demo's measurements."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from dfq_plugins.demo.network import DIGITS_SPEC
from dfq_plugins.report import quality, sections
from dfq_plugins.report.content import Samples, Section, Table
from dfq_plugins.report.fidelity import noise_section
from dfq_plugins.report.history import loss_section
from dfq_plugins.report.render import Report

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dfq_plugins.demo.result import DemoResult
    from dfq_plugins.demo.sources import CalibrationSource
    from dfq_plugins.report.content import Cell

WHY = (
    "Small devices compute with 8-bit or 4-bit integers instead of 32-bit floating point. To convert a trained "
    "network, a quantization framework has to see typical inputs once, to learn the range of values that each layer "
    "needs. This step is called calibration. Often the training data is no longer available for it."
)
WHAT = (
    "Here, each installed framework calibrates a small network for handwritten digits on inputs that were synthesized "
    "from the network, without a single real image. The first table compares the result with calibration on real "
    "training digits."
)


def demo_report(result: DemoResult, sources: Sequence[CalibrationSource], calibrators: Mapping[str, object]) -> Report:
    """Return the report of a demo run.

    Args:
        result: the measurements.
        sources: the calibration data.
        calibrators: options record of each calibrator by name.
    """
    sets = {source.name: source.inspection for source in sources}
    coverages = [
        (f"{cell.calibrator} {cell.recipe.upper()}", cell.coverage)
        for cell in result.measurements
        if cell.source == result.default and cell.coverage is not None
    ]
    noise = [
        (f"{cell.calibrator} {cell.recipe.upper()}", cell.fidelity)
        for cell in result.measurements
        if cell.fidelity is not None
    ]
    parts = (
        Section("Accuracy", (_reading(result),), (_table(result),)),
        sections.sample_section([_pictures(source, result.default) for source in sources]),
        quality.comparison_section(sets, result.default),
        quality.divergences(sets),
        quality.range_section(sets),
        _losses(sources, result.default),
        noise_section(noise, "held-out digits") if noise else None,
        sections.coverage_section(coverages),
        sections.artifact_section(result.artifacts, result.output),
        sections.rejected_section([artifact for _, artifact in result.rejected]) if result.rejected else None,
        sections.settings_section(_settings(sources, calibrators)),
    )
    footer = f"Made by dfq demo in {result.seconds:.0f} seconds."
    kept = tuple(part for part in parts if part is not None)
    return Report("A network quantized without its data", (WHY, WHAT), _figures(result), kept, footer)


def _losses(sources: Sequence[CalibrationSource], default: str) -> Section | None:
    """Return the loss of the default generator's synthesis."""
    curves = next((source.losses for source in sources if source.name == default), None)
    return loss_section(curves)


def _reading(result: DemoResult) -> str:
    return (
        f"Share of {result.held_out} handwritten digits that each network classifies correctly; they were not used for "
        f"training or calibration. One digit is {100 / result.held_out:.2f} points, so differences of a few digits "
        "mean little. W8A8 means 8-bit weights and activations, W4A4 means 4-bit."
    )


def _table(result: DemoResult) -> Table:
    columns = ("Calibrated on", *(recipe.upper() for _, recipe in result.columns))
    whole: tuple[Cell, ...] = ("float network", *([result.float_accuracy] * len(result.columns)))
    rows: tuple[tuple[Cell, ...], ...] = (whole, *((source, *result.row(source)) for source in result.sources))
    highlighted = (1 + result.sources.index(result.default),)
    caption = "Top-1 accuracy in percent. The highlighted row is the default generator."
    return Table(columns, rows, result.groups, caption, tuple(result.refusals), highlighted)


def _pictures(source: CalibrationSource, default: str) -> Samples:
    labels = () if source.samples.labels is None else tuple(str(label) for label in source.samples.labels.tolist())
    title = f"{source.name} (default)" if source.name == default else source.name
    return Samples(title, source.samples.inputs.numpy(), DIGITS_SPEC, labels, source.summary)


def _settings(
    sources: Sequence[CalibrationSource], calibrators: Mapping[str, object]
) -> dict[str, Mapping[str, object]]:
    generators = {f"Generator {source.name}": source.settings for source in sources if source.settings}
    frameworks = {f"Calibrator {name}": dataclasses.asdict(record) for name, record in calibrators.items()}  # type: ignore[call-overload]
    return {"Network input": sections.input_facts(DIGITS_SPEC), **generators, **frameworks}


def _figures(result: DemoResult) -> tuple[tuple[str, str], ...]:
    """Return the float accuracy and, for each recipe, the accuracy range over frameworks with the default generator."""
    figures = [(f"{result.float_accuracy:.1f}%", "float network on held-out digits")]
    for recipe in dict.fromkeys(recipe for _, recipe in result.columns):
        found = [result.accuracy(result.default, calibrator, recipe) for calibrator, r in result.columns if r == recipe]
        values = [value for value in found if value is not None]
        if values:
            low, high = f"{min(values):.1f}", f"{max(values):.1f}"
            text = f"{low}%" if low == high else f"{low}\N{EN DASH}{high}%"
            figures.append((text, f"{recipe.upper()}, calibrated on synthetic data"))
    return (*figures, ("0", "real images used for synthesis"))
