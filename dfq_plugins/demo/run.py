"""`dfq demo`: quantizes the digits network with every installed framework, on data from every generator."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dfq_plugins.demo import folder
from dfq_plugins.demo.data import load_digits
from dfq_plugins.demo.network import DIGITS_SPEC, digits_network
from dfq_plugins.demo.page import demo_report
from dfq_plugins.demo.result import DemoResult, Measurement
from dfq_plugins.demo.sources import real_source, synthetic_source
from dfq_plugins.demo.train import accuracy
from dfq_plugins.errors import ModelError, PluginError, UsageError
from dfq_plugins.host.registry import DEFAULT_GENERATOR, get_registry
from dfq_plugins.listeners import Broadcast
from dfq_plugins.quality.fidelity import layer_fidelity
from dfq_plugins.quantization.run import run_quantization
from dfq_plugins.report.render import render_report
from dfq_plugins.storage.files import write_atomically
from dfq_plugins.types import ProgressEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import nn

    from dfq_plugins.demo.data import Digits
    from dfq_plugins.demo.sources import CalibrationSource
    from dfq_plugins.host.registry import PluginInfo, Registry
    from dfq_plugins.quantization.result import QuantizationRun

    Listeners = Sequence[Callable[[ProgressEvent], None]]

logger = logging.getLogger(__name__)

FRAMEWORKS = ("torch-ao", "pytorch-quantization", "brevitas")
"""What the demo shows of the installed frameworks; their successors compute the same, and take longer to import."""

RECIPES = ("w8a8", "w4a4")
EXPORTED_RECIPE = "w8a8"
"""Recipe of the exported artifacts, which every framework supports; they are calibrated on the default generator's
data."""

COMPARED = 64
"""Number of held-out digits for comparing the layers of the exported networks with the float network's."""


@dataclass(frozen=True, eq=False)
class Bench:
    """Everything needed to measure a cell of the table."""

    network: nn.Module
    held_out: Digits
    artifact_folder: Path
    registry: Registry


def run_demo(output: Path, seed: int = 0, listeners: Listeners = (), registry: Registry | None = None) -> DemoResult:
    """Synthesize, quantize, measure on held-out digits, and write a report.

    Args:
        output: folder for data sets, artifacts and report: new, empty, or from an earlier demo.
        seed: seed of the synthesis; the same seed gives the same data.
        listeners: called with every progress event.
        registry: registry of generators and calibrators; None uses the installed plugins.

    Raises:
        DataError: the folder contains something that the demo did not write, or cannot be written.
        PluginError: no framework is installed, or scikit-learn, which ships the digits, is not installed.
    """
    began, output, registry = time.monotonic(), output.absolute(), registry or get_registry()
    training, held_out = load_digits()
    columns = table_columns(registry)
    folder.prepare_folder(output)
    bench = Bench(digits_network(), held_out, output / folder.ARTIFACT_FOLDER, registry)
    tell = Broadcast(listeners, registry)
    sources = [real_source(bench.network, training)]
    for name in ready(registry.generators):
        if name in registry.learning_generators:  # trains a network first, which takes too long for a demo
            continue
        data_folder = output / folder.DATA_FOLDER / name
        try:
            sources.append(synthetic_source(bench.network, name, data_folder, seed, listeners, registry))
        except UsageError as refusal:  # the generator needs more than the network, such as a record
            logger.info("The demo skips generator %r: %s", name, refusal)
    measurements, exported = measure_all(bench, sources, columns, tell)
    result = DemoResult(
        output=output,
        float_accuracy=100 * accuracy(bench.network, held_out),
        held_out=len(held_out.labels),
        sources=tuple(source.name for source in sources),
        columns=columns,
        default=DEFAULT_GENERATOR,
        measurements=measurements,
        artifacts=tuple((run.calibrator, artifact) for run in exported for artifact in run.artifacts),
        rejected=tuple((run.calibrator, artifact) for run in exported for artifact in run.rejected),
        report=output / folder.REPORT_FILE,
        seconds=time.monotonic() - began,
    )
    render_report(demo_report(result, sources, calibrator_settings(registry)), result.report)
    write_atomically(output / folder.RESULT_FILE, json.dumps(result.as_dict(), indent=2).encode())
    return replace(result, seconds=time.monotonic() - began)


def ready(provided: Mapping[str, PluginInfo]) -> tuple[str, ...]:
    """Return the names of the plugins that are ready to use."""
    return tuple(name for name, plugin in provided.items() if plugin.state == "ready")


def table_columns(registry: Registry) -> tuple[tuple[str, str], ...]:
    """Return each installed calibrator that the demo shows, or else each that is installed, with each recipe.

    Raises:
        PluginError: no calibrator is ready.
    """
    installed = ready(registry.calibrators)
    shown = [name for name in installed if name in FRAMEWORKS] or installed
    columns = tuple((calibrator, recipe) for calibrator in shown for recipe in RECIPES)
    if not columns:
        lines = " or ".join(plugin.install_line for plugin in registry.calibrators.values())
        raise PluginError(f"The demo needs a quantization framework, but none is installed. Run: {lines}")
    return columns


def measure_all(
    bench: Bench,
    sources: Sequence[CalibrationSource],
    columns: Sequence[tuple[str, str]],
    tell: Callable[[ProgressEvent], None],
) -> tuple[tuple[Measurement, ...], tuple[QuantizationRun, ...]]:
    """Quantize on every source for every column; return the cells, and the runs that exported files."""
    cells = [(source, calibrator, recipe) for calibrator, recipe in columns for source in sources]
    measurements: list[Measurement] = []
    exported: list[QuantizationRun] = []
    for number, (source, calibrator, recipe) in enumerate(cells):
        tell(ProgressEvent("quantize and measure", number, len(cells)))
        cell, run = measure(bench, source, calibrator, recipe)
        measurements.append(cell)
        if run is not None and (run.artifacts or run.rejected):
            exported.append(run)
    tell(ProgressEvent("quantize and measure", len(cells), len(cells)))
    return tuple(measurements), tuple(exported)


def measure(
    bench: Bench, source: CalibrationSource, calibrator: str, recipe: str
) -> tuple[Measurement, QuantizationRun | None]:
    """Quantize on one source with one framework; if the framework rejects the recipe, the cell stays empty."""
    exported = (source.name, recipe) == (DEFAULT_GENERATOR, EXPORTED_RECIPE)
    empty = Measurement(source.name, calibrator, recipe, accuracy=None)
    try:
        run = run_quantization(
            bench.network,
            source.data,
            calibrator=calibrator,
            recipe=recipe,
            spec=DIGITS_SPEC,
            output=bench.artifact_folder / calibrator if exported else None,
            registry=bench.registry,
        )
    except (UsageError, ModelError) as refusal:
        return replace(empty, refusal=str(refusal)), None
    percent = 100 * accuracy(run.model, bench.held_out)
    fidelity = None
    if exported and run.coverage.quantized:
        fidelity = layer_fidelity(bench.network, run.model, bench.held_out.inputs[:COMPARED], run.coverage)
    return replace(empty, accuracy=percent, coverage=run.coverage, fidelity=fidelity), run


def calibrator_settings(registry: Registry) -> dict[str, object]:
    """Return the options record of each calibrator that the demo shows by name."""
    return {name: registry.options("calibrator", name) for name, _ in table_columns(registry)}
