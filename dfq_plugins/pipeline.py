"""Orchestration: model -> synthetic data set, and model + data -> quantized model. All the work is done elsewhere."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dfq_plugins.allocation import kept_memory
from dfq_plugins.budget import Budget
from dfq_plugins.calibration_data import as_calibration_data
from dfq_plugins.checks import check_finite, checked_spec, complete_spec
from dfq_plugins.compilation import writable_compile_cache
from dfq_plugins.digest import model_digest
from dfq_plugins.errors import UsageError
from dfq_plugins.generators import DEFAULT_GENERATOR
from dfq_plugins.listeners.broadcast import Broadcast
from dfq_plugins.manifest import GeneratorRecord
from dfq_plugins.model_state import frozen_copy, limited_threads, preserve_global_state
from dfq_plugins.plan import DatasetPlan
from dfq_plugins.provided import attributed
from dfq_plugins.ranks import Rank
from dfq_plugins.registry import get_registry
from dfq_plugins.synthesis import ShardMaker, write_dataset
from dfq_plugins.top1 import top1_agreement
from dfq_plugins.types import ProgressEvent, Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import nn

    from dfq_plugins.calibration_data import CalibrationData
    from dfq_plugins.dataset import SyntheticDataset
    from dfq_plugins.provided import Provided
    from dfq_plugins.registry import Registry
    from dfq_plugins.types import Artifact, Coverage, DataGenerator, InputSpec

LARGEST_SHARD = 256
SMALLEST_SHARD = 32
VALUES_PER_SHARD = LARGEST_SHARD * 3 * 64 * 64
"""Input values in one shard: 256 small images, fewer of the large, whose many pixels make the statistics sound."""

AGREEMENT_SAMPLES = 512


def synthesize(
    model: nn.Module,
    spec: InputSpec | None = None,
    *,
    generator: str = DEFAULT_GENERATOR,
    num_samples: int = 1024,
    seed: int = 0,
    options: Mapping[str, object] | object | None = None,
    output: Path | str | None = None,
    batch_size: int | None = None,
    max_seconds: float | Budget | None = None,
    threads: int | None = None,
    listeners: Iterable[Callable[[ProgressEvent], None]] = (),
    registry: Registry | None = None,
) -> SyntheticDataset:
    """Synthesise inputs from a trained model alone.

    In a script under `torchrun`, all ranks call this with the same arguments and share the shards in `output`; each
    returns when the set is complete.

    Args:
        model: trained classifier or other network with one input; stays as it is.
        spec: what an input looks like; what can be read off the model is inferred where it is None.
        generator: name of the generator, built-in or from a plugin.
        num_samples: how many samples the set has in the end, exactly.
        seed: same model, settings and seed give the same bytes on the same kind of machine.
        options: settings of the generator, as a mapping or as its options record.
        output: folder of the data set. An interrupted run of the same settings goes on there, a finished set with fewer
            samples grows. None: a temporary folder that lives as long as the returned object.
        batch_size: samples optimised together, which make one shard; None chooses by the size of an input.
        max_seconds: the best set within this time, instead of a number of iterations. Its bytes depend on the speed of
            the machine. A run that is resumed has the whole time again for what is missing. A `Budget` counts from when
            it was made.
        threads: processor threads to compute with; None leaves torch's number, or divides the cores among the ranks of
            a machine. The former number is restored.
        listeners: called with every `ProgressEvent`, besides the listeners of plugins.
        registry: where plugins are looked up; None takes those that are installed.

    Returns:
        The data set, with labels and teacher logits.

    Raises:
        UsageError: a count, option or name that cannot be used, or a shape that cannot be inferred.
        PluginError: an unknown or unavailable generator.
        ModelError: a model that cannot be inverted (no trained BatchNorm) or does not accept the shape.
        DataError: an output folder that is not this run's, or cannot be written.
        DivergedError: the optimisation ran away; finished shards stay, and the run can be resumed.
    """
    for name, value in (("num_samples", num_samples), ("batch_size", batch_size), ("threads", threads)):
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}.")
    rank, budget = Rank.current(), Budget.of(max_seconds)
    registry = registry or get_registry()
    provided = _synthesizer(registry, generator)
    with preserve_global_state(), limited_threads(threads or rank.threads()), writable_compile_cache(), kept_memory():
        record = registry.options("generator", generator, options)
        maker = registry.create("generator", generator, record)
        teacher = frozen_copy(model)
        check_finite(teacher)
        spec = checked_spec(teacher, spec, registry)
        _check_supported(maker, provided, teacher, spec, budget)
        plan = DatasetPlan(
            model_digest=model_digest(teacher),
            generator=_generator_record(maker, provided, record),
            seed=seed,
            spec=spec,
            num_samples=num_samples,
            shard_size=batch_size or default_shard_size(spec),
            labels=_labels_kind(maker, spec),
            max_seconds=None if budget is None else budget.seconds,
        )
        broadcast = Broadcast(listeners, registry)
        # The generator's model is its own: whatever it does to it, the teacher judges all samples as it was given.
        shard_maker = ShardMaker(teacher, spec, partial(maker.generate, frozen_copy(teacher), spec), provided)
        return write_dataset(output, plan, shard_maker, broadcast, rank=rank, budget=budget)


def _synthesizer(registry: Registry, name: str) -> Provided:
    """Return the generator of that name, if it makes data sets."""
    provided = registry.find("generator", name)
    if not provided.synthesizes:
        raise UsageError(
            f"Generator {name!r} learns against a student and makes no data set by itself. Give it to "
            f"finetune(model, data, generator={name!r}, ...), or to dfq finetune with --generator {name}."
        )
    return provided


def default_shard_size(spec: InputSpec) -> int:
    """Return how many samples are optimised together by default.

    >>> from dfq_plugins.types import InputSpec
    >>> default_shard_size(InputSpec((3, 32, 32))), default_shard_size(InputSpec((3, 224, 224)))
    (256, 32)
    """
    return max(SMALLEST_SHARD, min(LARGEST_SHARD, VALUES_PER_SHARD // math.prod(spec.shape)))


def _check_supported(
    maker: DataGenerator, provided: Provided, model: nn.Module, spec: InputSpec, budget: Budget | None
) -> None:
    """Let a generator that can tell refuse the model before a folder is made for its samples."""
    if budget is not None and not getattr(maker, "timed", False):
        raise UsageError(
            f"max_seconds needs a generator that keeps to a time, and the {provided} does not. Leave it out."
        )
    check = getattr(maker, "check_supported", None)
    if check is not None:
        with attributed(provided):
            check(model, spec)


def _generator_record(maker: DataGenerator, provided: Provided, options: Any) -> GeneratorRecord:
    """Return who makes the samples and how, with what the generator filled in itself."""
    settled = getattr(maker, "settled_options", None)
    return GeneratorRecord(
        provided.entry.name, provided.distribution, provided.version, asdict(settled() if settled else options)
    )


def _labels_kind(maker: DataGenerator, spec: InputSpec) -> str:
    if getattr(maker, "conditional", False):
        return "conditional"
    return "none" if spec.num_classes is None else "teacher"


@dataclass(frozen=True)
class QuantizationRun:
    """A quantized model with everything that is known about it.

    Args:
        model: the framework's native object.
        calibrator: name of the calibrator.
        recipe: bit widths.
        coverage: which layers are quantized and how, and what stays in float.
        artifacts: exported files, each checked.
        agreement: share of the calibration inputs on which float and quantized model name the same class; NaN where
            the network is no classifier.
    """

    model: nn.Module
    calibrator: str
    recipe: Recipe
    coverage: Coverage
    artifacts: tuple[Artifact, ...]
    agreement: float


def quantize(model: nn.Module, data: CalibrationData, *, calibrator: str, **settings: Any) -> nn.Module:
    """Quantize a model on the given data inside one framework, and return the framework's native object.

    The arguments are those of `run_quantization`, which also tells what was quantized and exported.
    """
    return run_quantization(model, data, calibrator=calibrator, **settings).model


def run_quantization(
    model: nn.Module,
    data: CalibrationData,
    *,
    calibrator: str,
    recipe: str | Recipe = "w8a8",
    spec: InputSpec | None = None,
    options: Mapping[str, object] | object | None = None,
    output: Path | str | None = None,
    finetune: Mapping[str, object] | object | None = None,
    listeners: Iterable[Callable[[ProgressEvent], None]] = (),
    registry: Registry | None = None,
) -> QuantizationRun:
    """Quantize a model after training, with one framework's own observers, kernels and export.

    Args:
        model: trained float network; stays as it is.
        data: a `SyntheticDataset`, a tensor `(samples, *shape)`, or an iterable of such tensors, of `Batch` records or
            of (inputs, target) pairs.
        calibrator: name of the framework's calibrator: "torch-ao", "pytorch-quantization", "brevitas", or a plugin's.
        recipe: bit widths, such as "w8a8" or "w4a4".
        spec: what an input looks like; a synthetic data set brings its own. Its valid range becomes the range of the
            input quantizer.
        options: settings of the calibrator, as a mapping or as its options record.
        output: folder for the artefacts; None exports nothing.
        finetune: train the quantized model as `dfq_plugins.finetune` does, with these settings, or the defaults where
            True; the result is then its `FinetuningRun`.
        listeners: called with every `ProgressEvent`.
        registry: where plugins are looked up; None takes those that are installed.

    Raises:
        UsageError: a recipe, option or name that cannot be used.
        PluginError: an unknown calibrator, or one whose framework is not installed.
        ModelError: a model that the framework cannot trace or quantize.
        DataError: data that is empty or of the wrong shape.
        ArtifactError: an exported file that does not agree with the model; it was removed.
    """
    if finetune not in (None, False):
        from dfq_plugins import finetuning  # noqa: PLC0415  it builds on this module

        return finetuning.finetune(
            model,
            data,
            calibrator=calibrator,
            recipe=recipe,
            spec=spec,
            options=options,
            training=None if finetune is True else finetune,  # type: ignore[arg-type]  # checked there
            output=output,
            listeners=listeners,
            registry=registry,
        )
    registry = registry or get_registry()
    provided = registry.find("calibrator", calibrator)
    recipe = Recipe.parse(recipe) if isinstance(recipe, str) else recipe
    worker = registry.create("calibrator", calibrator, options)
    broadcast = Broadcast(listeners, registry)
    with preserve_global_state():
        original = frozen_copy(model)
        check_finite(original)
        samples = as_calibration_data(data, spec)
        spec = checked_spec(original, samples.spec or complete_spec(original, shape=samples.shape), registry)
        samples.check(spec)
        with attributed(provided):
            prepared = worker.prepare(original, spec, recipe, training=False)
            with torch.no_grad():
                worker.calibrate(prepared, samples.observed(lambda done: _calibrated(broadcast, done, len(samples))))
            converted = worker.convert(prepared)
            coverage = worker.describe(converted)
            agreement = top1_agreement(original, converted, samples, AGREEMENT_SAMPLES)
            artifacts = () if output is None else worker.export(converted, spec, Path(output))
    return QuantizationRun(converted, calibrator, recipe, coverage, artifacts, agreement)


def _calibrated(broadcast: Broadcast, done: int, total: int) -> None:
    broadcast(ProgressEvent("calibrate", done, total))
