"""Synthesizes a data set from a trained network: `synthesize`."""

from __future__ import annotations

import math
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from dfq_plugins.data.manifest import GeneratorRecord
from dfq_plugins.data.plan import DatasetPlan
from dfq_plugins.errors import UsageError
from dfq_plugins.host.broadcast import Broadcast
from dfq_plugins.host.plugin_info import attributed
from dfq_plugins.host.registry import DEFAULT_GENERATOR, get_registry
from dfq_plugins.model_state import frozen_copy, limited_threads, preserve_global_state
from dfq_plugins.network.digest import model_digest
from dfq_plugins.network.specification import resolve_spec
from dfq_plugins.network.trial import check_finite
from dfq_plugins.storage.rank import Rank
from dfq_plugins.synthesis.budget import RunBudget
from dfq_plugins.synthesis.compilation import writable_compile_cache
from dfq_plugins.synthesis.shard_maker import ShardMaker, write_dataset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from torch import nn

    from dfq_plugins.data.dataset import SyntheticDataset
    from dfq_plugins.host.plugin_info import PluginInfo
    from dfq_plugins.host.registry import Registry
    from dfq_plugins.types import DataGenerator, InputSpec, ProgressEvent

LARGEST_SHARD = 256

SMALLEST_SHARD = 32

VALUES_PER_SHARD = LARGEST_SHARD * 3 * 64 * 64
"""Input values in one shard: 256 small images, fewer of the large, whose many pixels make the statistics sound."""


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
    max_seconds: float | RunBudget | None = None,
    threads: int | None = None,
    listeners: Iterable[Callable[[ProgressEvent], None]] = (),
    registry: Registry | None = None,
) -> SyntheticDataset:
    """Synthesize inputs from a trained model alone.

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
        batch_size: samples optimized together, which make one shard; None chooses by the size of an input.
        max_seconds: the best set within this time, instead of a number of iterations. Its bytes depend on the speed of
            the machine. A run that is resumed has the whole time again for what is missing. A `RunBudget` counts from
            when it was made.
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
        DivergedError: the optimization ran away; finished shards stay, and the run can be resumed.
    """
    for name, value in (("num_samples", num_samples), ("batch_size", batch_size), ("threads", threads)):
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}.")
    rank, budget = Rank.current(), RunBudget.of(max_seconds)
    registry = registry or get_registry()
    info = registry.find("generator", generator)
    with preserve_global_state(), limited_threads(threads or rank.threads()), writable_compile_cache():
        record = registry.options("generator", generator, options)
        source = registry.create("generator", generator, record)
        teacher = frozen_copy(model)
        check_finite(teacher)
        spec = resolve_spec(teacher, spec, registry)
        _check_supported(source, info, teacher, spec, budget)
        plan = DatasetPlan(
            model_digest=model_digest(teacher),
            generator=_generator_record(source, info, record),
            seed=seed,
            spec=spec,
            num_samples=num_samples,
            shard_size=batch_size or default_shard_size(spec),
            labels=_labels_kind(source, spec),
            max_seconds=None if budget is None else budget.seconds,
        )
        broadcast = Broadcast(listeners, registry)
        # The generator's model is its own: whatever it does to it, the teacher judges all samples as it was given.
        shard_maker = ShardMaker(teacher, spec, partial(source.generate, frozen_copy(teacher), spec), info)
        return write_dataset(output, plan, shard_maker, broadcast, rank=rank, budget=budget)


def default_shard_size(spec: InputSpec) -> int:
    """Return how many samples are optimized together by default.

    >>> from dfq_plugins.types import InputSpec
    >>> default_shard_size(InputSpec((3, 32, 32))), default_shard_size(InputSpec((3, 224, 224)))
    (256, 32)
    """
    return max(SMALLEST_SHARD, min(LARGEST_SHARD, VALUES_PER_SHARD // math.prod(spec.shape)))


def _check_supported(
    generator: DataGenerator, info: PluginInfo, model: nn.Module, spec: InputSpec, budget: RunBudget | None
) -> None:
    """Give the generator a chance to reject the model before a folder is made for its samples."""
    if budget is not None and not generator.timed:
        raise UsageError(f"max_seconds needs a generator that keeps to a time, and the {info} does not. Leave it out.")
    with attributed(info):
        generator.check_supported(model, spec)


def _generator_record(generator: DataGenerator, info: PluginInfo, options: Any) -> GeneratorRecord:
    """Return who makes the samples and how, with what the generator filled in itself."""
    with attributed(info):
        resolved = asdict(generator.resolved_options(options))
    return GeneratorRecord(info.entry.name, info.distribution, info.version, resolved)


def _labels_kind(generator: DataGenerator, spec: InputSpec) -> str:
    if generator.conditional:
        return "conditional"
    return "none" if spec.num_classes is None else "teacher"
