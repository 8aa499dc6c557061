"""The pages of `--report` for a synthesis, a quantization and an inspection."""

from __future__ import annotations

import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dfq_plugins.inputs import count, rows
from dfq_plugins.network.agreement import class_output
from dfq_plugins.quantization.finetune import FinetuneRun
from dfq_plugins.report import fidelity as fidelity_sections
from dfq_plugins.report import quality, sections
from dfq_plugins.report.content import Samples
from dfq_plugins.report.history import loss_curves, loss_section
from dfq_plugins.report.render import Report
from dfq_plugins.report.training import training_section
from dfq_plugins.types import InputSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dfq_plugins.data.dataset import SyntheticDataset
    from dfq_plugins.network.agreement import OutputAgreement
    from dfq_plugins.quality.fidelity import Fidelity
    from dfq_plugins.quality.inspection import Inspection
    from dfq_plugins.quantization.result import QuantizationRun
    from dfq_plugins.report.content import Section
    from dfq_plugins.types import Batch, ProgressEvent, Specification

PICTURES = 24
"""Number of samples shown on a page."""

WHY = (
    "Small devices compute with 8-bit or 4-bit integers instead of 32-bit floating point. To convert a trained "
    "network, a quantization framework has to see typical inputs once, to learn the range of values that each layer "
    "needs. This step is called calibration."
)
SYNTHETIC = (
    "The inputs on this page are synthetic. They were computed from the trained network without any real data, by "
    "optimizing noise until it matches the statistics of the training data that the network stores."
)


def pictures(title: str, batch: Batch, spec: Specification, caption: str = "") -> list[Samples]:
    """Return the first samples of each input of a batch with their class numbers."""
    shown = rows(batch.inputs, slice(PICTURES))
    labels = () if batch.labels is None else tuple(str(label) for label in batch.labels[: count(shown)].tolist())
    if isinstance(spec, InputSpec):
        return [Samples(title, shown.cpu().numpy(), spec, labels, caption)]
    return [
        Samples(f"{title}: {name}", shown[name].cpu().numpy(), one, labels, caption)
        for name, one in spec.inputs.items()
    ]


def synthesis_page(
    data: SyntheticDataset, noise: Inspection, found: Inspection, events: Sequence[ProgressEvent], seconds: float
) -> Report:
    """Return the page of a synthesis.

    Args:
        data: the set.
        noise: inspection of plain noise, for comparison.
        found: inspection of the set.
        events: progress events of the synthesis, with losses.
        seconds: wall time.
    """
    sets = {"Gaussian noise, before": noise, "synthetic set, after": found}
    shown = next(iter(data.loader(PICTURES)))
    parts = [
        quality.quality_section(found),
        sections.sample_section(pictures(data.manifest.generator.name, shown, data.spec)),
        quality.divergences(sets),
        quality.range_section(sets),
        loss_section(loss_curves(events, [shard.num_samples for shard in data.manifest.shards])),
        sections.settings_section(set_settings(data)),
    ]
    footer = f"Made by {command()} in {seconds:.0f} seconds."
    figures = (("0", "real samples used"), (str(len(data)), "synthetic samples"), *_quality_figures(found, noise))
    kept = tuple(part for part in parts if part is not None)
    return Report("Synthetic calibration data", (WHY, SYNTHETIC), figures, kept, footer)


def quantization_page(
    data: SyntheticDataset,
    found: Inspection,
    run: QuantizationRun,
    fidelity: Fidelity,
    held_out: tuple[int, Sequence[OutputAgreement]],
    options: Mapping[str, object],
    output: Path | None,
) -> Report:
    """Return the page of a quantization.

    Args:
        data: the calibration set.
        found: inspection of the set.
        run: the quantized network.
        fidelity: its noise by layer.
        held_out: number of samples held out of the calibration, and the agreement on them.
        options: the calibrator's settings.
        output: folder of the artifacts, if any.
    """
    count, measured = held_out
    title = f"{run.calibrator} {str(run.recipe).upper()}"
    bits = f"{run.recipe.weight_bits}-bit weights and {run.recipe.activation_bits}-bit activations"
    what = f"This page shows the network as quantized by the framework {run.calibrator}, with {bits}."
    sets = {"synthetic set": found}
    parts = [
        training_section(run) if isinstance(run, FinetuneRun) else None,
        fidelity_sections.calibration_section(measured, count, fidelity),
        _artifacts(run, output),
        sections.rejected_section(run.rejected) if run.rejected else None,
        quality.coverage_section(title, run.coverage),
        quality.quality_section(found),
        sections.sample_section(pictures(data.manifest.generator.name, next(iter(data.loader(PICTURES))), data.spec)),
        quality.divergences(sets),
        quality.range_section(sets),
        sections.settings_section({**set_settings(data), f"Calibrator {run.calibrator}": options}),
    ]
    kept = tuple(part for part in parts if part is not None)
    figures = _quantization_figures(run, fidelity, measured, count)
    return Report(f"Quantized by {title}", (WHY, what, SYNTHETIC), figures, kept, f"Made by {command()}.")


def inspection_page(name: str, found: Inspection, batch: Batch, spec: Specification, *, synthetic: bool) -> Report:
    """Return the page of an inspection.

    Args:
        name: name of the set.
        found: inspection of the set.
        batch: first samples of the set.
        spec: input specification.
        synthetic: whether the set is synthetic; if not, the page does not mention its origin.
    """
    sets = {name: found}
    parts = [
        quality.quality_section(found),
        sections.sample_section(pictures(name, batch, spec)),
        quality.divergences(sets),
        quality.range_section(sets),
        sections.settings_section({"Network input": sections.input_facts(spec)}),
    ]
    kept = tuple(part for part in parts if part is not None)
    figures = ((str(found.num_samples), "samples"), *_quality_figures(found))
    introduction = (WHY, SYNTHETIC) if synthetic else (WHY,)
    return Report(f"Is {name} good enough to calibrate on?", introduction, figures, kept, f"Made by {command()}.")


def command() -> str:
    """Return the command that made a page, and the time, for its footer.

    Where the command line is called from another program, its arguments are not those of the process.
    """
    context, program = click.get_current_context(silent=True), Path(sys.argv[0])
    if context is None or program.name == "dfq" or program.parent.name == "dfq_plugins":
        words = shlex.join([program.name, *sys.argv[1:]])
    else:
        words = " ".join(["dfq", *context.command_path.split()[1:]])
    return f"{words} on {datetime.now(UTC).strftime('%Y-%m-%d %H:%M UTC')}"


def set_settings(data: SyntheticDataset) -> dict[str, Mapping[str, object]]:
    """Return all settings that a set's samples depend on."""
    manifest = data.manifest
    origin = {"seed": manifest.seed, "samples": len(data), "labels": manifest.labels}
    generator = {
        **manifest.generator.options,
        "provided by": f"{manifest.generator.provider} {manifest.generator.version}",
    }
    return {
        "Network input": sections.input_facts(data.spec) | {"model digest": manifest.model_digest},
        "Data set": origin,
        f"Generator {manifest.generator.name}": generator,
        "Versions when the set was made": dict(manifest.versions),
    }


def _artifacts(run: QuantizationRun, output: Path | None) -> Section | None:
    if output is None or not run.artifacts:
        return None
    return sections.artifact_section([(run.calibrator, artifact) for artifact in run.artifacts], output)


def _quality_figures(found: Inspection, before: Inspection | None = None) -> tuple[tuple[str, str], ...]:
    if found.score is None or found.divergence is None:
        return ()
    meaning = "divergence from the training data's statistics"
    if before is not None and before.divergence is not None:
        meaning += f"; noise: {before.divergence:.2g}"
    return ((f"{found.score:.0f} of 100", found.verdict), (f"{found.divergence:.2g}", meaning))


def _quantization_figures(
    run: QuantizationRun, fidelity: Fidelity, measured: Sequence[OutputAgreement], held_out: int
) -> tuple[tuple[str, str], ...]:
    figures = [(str(len(run.coverage.layers)), "layers and operations quantized")]
    classes = class_output(measured)
    where = f"{held_out} held-out samples" if held_out else "the calibration samples"
    if classes is not None:
        figure, note = classes.headline
        figures.insert(0, (figure, f"same class as the float network, on {where}{note}"))
    elif measured:
        worst = min(measured, key=lambda output: output.decibels)
        figures.insert(0, (f"{worst.decibels:.0f} dB", f"signal to noise of the output {worst.name}, on {where}"))
    if fidelity.layers:
        noisiest = fidelity.layers[0]
        figures.append((f"{noisiest.decibels:.0f} dB", f"noisiest layer: {noisiest.name}"))
    return tuple(figures)
