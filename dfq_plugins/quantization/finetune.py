"""Orchestration of fine-tuning: model + data -> quantized model, distilled from the float model's outputs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dfq_plugins.data.calibration_data import as_calibration_data
from dfq_plugins.distillation.inputs import InputSource
from dfq_plugins.distillation.loop import Student
from dfq_plugins.distillation.options import TrainingOptions, rate_for
from dfq_plugins.distillation.process_group import joined_process_group
from dfq_plugins.distillation.task import prepare_task, train
from dfq_plugins.errors import UsageError
from dfq_plugins.host.accepted import accepted_spec
from dfq_plugins.host.broadcast import Broadcast
from dfq_plugins.host.options import parse_options
from dfq_plugins.host.plugin_info import attributed
from dfq_plugins.host.registry import get_registry
from dfq_plugins.inputs import rows
from dfq_plugins.model_state import frozen_copy, preserve_global_state
from dfq_plugins.network.agreement import class_agreement
from dfq_plugins.quantization.artifacts import export_all, require_folder
from dfq_plugins.quantization.guard import warn_of_outputs
from dfq_plugins.quantization.input_step import warn_of_input_step
from dfq_plugins.quantization.manifest import about_data, about_network, check_artifact_folder, write_manifest
from dfq_plugins.quantization.reconstruction_step import ReconstructionStep, reconstruction_options
from dfq_plugins.quantization.result import QuantizationRun
from dfq_plugins.storage.locks import work_folder
from dfq_plugins.types import ProgressEvent, Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import nn

    from dfq_plugins.data.calibration_data import CalibrationData
    from dfq_plugins.distillation.history import TrainingPoint
    from dfq_plugins.distillation.process_group import ProcessGroup
    from dfq_plugins.distillation.task import DistillationTask
    from dfq_plugins.host.registry import Registry
    from dfq_plugins.network.agreement import OutputAgreement
    from dfq_plugins.reconstruction.options import ReconstructionOptions
    from dfq_plugins.types import Calibrator, GivenSpec, InputSpec, LearningGenerator

CALIBRATION_SAMPLES = 1024
"""Number of samples to calibrate ranges on before training; more samples cost time without changing the result."""


@dataclass(frozen=True)
class FinetuneRun(QuantizationRun):
    """A fine-tuned quantized model with the record of its training.

    `agreement` and `output_agreement` are the finished model's agreement with the float model on held-out data.

    Args:
        agreement_before: the agreement of the calibrated model before training.
        output_agreement_before: the same by output.
        history: points of the training curves.
        training: training settings.
        held_out: number of held-out samples.
    """

    agreement_before: float
    output_agreement_before: tuple[OutputAgreement, ...]
    history: tuple[TrainingPoint, ...]
    training: TrainingOptions
    held_out: int


def finetune(
    model: nn.Module,
    data: CalibrationData,
    *,
    calibrator: str,
    recipe: str | Recipe = "w8a8",
    spec: GivenSpec | None = None,
    options: Mapping[str, object] | object | None = None,
    reconstruct: bool | Mapping[str, object] | ReconstructionOptions = False,
    training: Mapping[str, object] | TrainingOptions | None = None,
    generator: str | LearningGenerator | None = None,
    generator_options: Mapping[str, object] | object | None = None,
    output: Path | str | None = None,
    work: Path | str | None = None,
    allow_other_network: bool = False,
    listeners: Iterable[Callable[[ProgressEvent], None]] = (),
    registry: Registry | None = None,
) -> FinetuneRun:
    """Calibrate a model inside one framework, then train it there to reproduce the float model's outputs.

    Under `torchrun`, each process takes a part of every batch and returns the same model; the first one writes files.

    Args:
        model: trained float network, the teacher; not changed.
        data: calibration and training data; a part of it selects the best state.
        calibrator: name of the framework's calibrator.
        recipe: bit widths, such as "w8a8" or "w4a4".
        spec: input specification; a synthetic data set provides its own.
        options: settings of the calibrator, as a mapping or as its options record.
        reconstruct: whether roundings and scales are learned between calibration and training, block by block, or the
            settings of that.
        training: training settings, as a mapping or as `TrainingOptions`; `task_loss` adds your own term, see
            `dfq_plugins.distillation.task_loss.TaskBatch`.
        generator: name of a learning generator, or such an object. It makes a share of each batch
            (`training.generator_fraction`) and learns from the student as it trains.
        generator_options: settings of a generator given by name.
        output: folder for the artifacts; None exports nothing.
        work: folder for checkpoints: repeating the call resumes an interrupted run. None stores no checkpoints.
        allow_other_network: only warn of data that was synthesized from another network, instead of rejecting it.
        listeners: called with every `ProgressEvent`.
        registry: registry to look up plugins in; None uses the installed plugins.

    Raises:
        UsageError: the recipe, an option, a layer or a name is invalid, or the framework cannot train at a bit width.
        PluginError: the calibrator is unknown, or its framework is not installed.
        ModelError: the framework cannot trace, quantize or train the model.
        DataError: the data is empty, has the wrong shape, or was made from another model; or the work folder belongs to
            another run.
        DivergedError: the loss is no longer finite; the last good checkpoint stays in the work folder.

    A failing export raises nothing, so it never costs you a training: it is listed in `FinetuneRun.rejected`.
    """
    if output is not None:
        require_folder(Path(output))
    registry = registry or get_registry()
    info = registry.find("calibrator", calibrator)
    recipe = Recipe.parse(recipe) if isinstance(recipe, str) else recipe
    settings = parse_options(TrainingOptions, training, owner="fine-tuning")
    reconstruction = reconstruction_options(reconstruct)
    framework = registry.create("calibrator", calibrator, options)
    chosen = registry.options("calibrator", calibrator, options)
    inputs = InputSource(data, generator=generator, options=generator_options, allow_other_network=allow_other_network)
    inputs.check(registry)
    broadcast = Broadcast(listeners, registry)
    with preserve_global_state(), joined_process_group() as ranks, work_folder(work, writes=ranks.leads) as folder:
        _require_same_steps(reconstruction, ranks)
        torch.manual_seed(settings.seed)  # for frameworks and generators that draw from the global random state
        identity = about_network(frozen_copy(model))
        if output is not None:
            check_artifact_folder(Path(output), identity)
        task = prepare_task(model, inputs, spec, settings, folder, broadcast, registry)
        accepted = accepted_spec(framework, info, task.spec)
        with attributed(info):
            prepared, step = _calibrated(framework, task, recipe, accepted, reconstruction)
            warn_of_input_step(task.teacher, rows(task.examples.inputs, slice(64)), task.spec, recipe)
            about = [calibrator, str(recipe), asdict(chosen)]
            kept = folder if ranks.leads else None
            blocks = step.run([task.examples.inputs], accepted, task.report, kept, about)
        settings = task.resolve_settings(_settings_for(settings, recipe), prepared)
        before = task.output_agreement(prepared)
        if reconstruction is not None:
            about = [*about, asdict(replace(reconstruction, max_seconds=None))]
        place = task.checkpoint_dir(folder, "finetune", settings, about, ranks)
        history = train(_student(prepared, framework), task, settings, place)
        with attributed(info):
            converted = framework.convert(prepared)
            coverage = framework.describe(converted)
            after = task.output_agreement(converted)
            if settings.task_loss is None:  # which may lead away from the float network
                warn_of_outputs(after, recipe, calibrator)
            writes = output is not None and ranks.leads
            artifacts, rejected = export_all(framework, converted, accepted, Path(output or "")) if writes else ((), ())
        run = FinetuneRun(
            model=converted,
            calibrator=calibrator,
            recipe=recipe,
            coverage=coverage,
            artifacts=artifacts,
            agreement=class_agreement(after),
            output_agreement=after,
            rejected=rejected,
            agreement_before=class_agreement(before),
            output_agreement_before=before,
            history=history,
            training=settings,
            held_out=len(task.held_out),
            reconstruction=blocks,
        )
        if writes:
            parts = [task.examples.inputs, task.held_out.inputs]
            about_samples = about_data(data, parts, len(task.examples) + len(task.held_out))
            write_manifest(Path(output or ""), run, identity, data=about_samples, options=chosen, spec=task.spec)
        ranks.wait()
    return run


def _settings_for(settings: TrainingOptions, recipe: Recipe) -> TrainingOptions:
    """Return the settings with open values filled in, based on the recipe."""
    if settings.learning_rate is None:
        settings = replace(settings, learning_rate=rate_for(min(recipe.weight_bits, recipe.activation_bits)))
    if settings.batch_norm is None:
        # Binarizing the weights shifts every mean and variance far from the recorded statistics.
        settings = replace(settings, batch_norm="reestimated" if recipe.weight_bits == 1 else "frozen")
    return settings


def _calibrated(
    framework: Calibrator,
    task: DistillationTask,
    recipe: Recipe,
    spec: InputSpec,
    reconstruction: ReconstructionOptions | None,
) -> tuple[nn.Module, ReconstructionStep]:
    """Return the framework's network for training, with calibrated ranges, and the step that reconstructs it."""
    prepared = framework.prepare(task.teacher, spec, recipe, training=True)
    step = ReconstructionStep(framework, prepared, reconstruction)
    samples = as_calibration_data(rows(task.examples.inputs, slice(CALIBRATION_SAMPLES)), task.spec)
    total = len(samples)
    with torch.no_grad():
        framework.calibrate(
            prepared, samples.observed(lambda done: task.report(ProgressEvent("calibrate", done, total)))
        )
    return prepared, step


def _require_same_steps(reconstruction: ReconstructionOptions | None, ranks: ProcessGroup) -> None:
    """Reject a time budget where several processes must reconstruct the same network."""
    if reconstruction is not None and reconstruction.max_seconds is not None and ranks.size > 1:
        raise UsageError(
            f"Each of the {ranks.size} processes reconstructs the network, with the same steps, but with max_seconds="
            f"{reconstruction.max_seconds:g} their number would follow the speed of each. Give steps instead."
        )


def _student(prepared: nn.Module, framework: Calibrator) -> Student:
    """Return the prepared network with its framework-specific hooks."""
    scales = tuple(framework.scale_parameters(prepared))
    return Student(prepared, scales, partial(framework.freeze_ranges, prepared))
