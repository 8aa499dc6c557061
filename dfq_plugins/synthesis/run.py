"""Synthesizes a data set from a trained network: `synthesize`."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from dfq_plugins.data.manifest import GeneratorRecord
from dfq_plugins.data.plan import DatasetPlan
from dfq_plugins.errors import UsageError
from dfq_plugins.host.accepted import accepted_spec
from dfq_plugins.host.broadcast import Broadcast
from dfq_plugins.host.plugin_info import attributed
from dfq_plugins.host.registry import DEFAULT_GENERATOR, get_registry
from dfq_plugins.model_state import frozen_copy, limited_threads, preserve_global_state
from dfq_plugins.network.digest import model_digest
from dfq_plugins.network.normalization import impossible, warn_of_normalization
from dfq_plugins.network.origin import warn_if_untrained
from dfq_plugins.network.outputs import class_logits
from dfq_plugins.network.specification import require_classes, resolve_spec
from dfq_plugins.network.trial import check_finite, trial_run
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
    from dfq_plugins.types import DataGenerator, GivenSpec, InputSpec, ProgressEvent, Specification

LARGEST_SHARD = 256

SMALLEST_SHARD = 32

VALUES_PER_SHARD = LARGEST_SHARD * 3 * 64 * 64
"""Input values in one shard: 256 small images, or fewer large ones, whose many pixels make the statistics reliable."""


def synthesize(
    model: nn.Module,
    spec: GivenSpec | None = None,
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
    """Synthesize inputs from a trained model, without data.

    In a script under `torchrun`, all ranks call this with the same arguments and share the shards in `output`; each
    returns when the set is complete.

    Args:
        model: trained classifier or other network, with outputs of any structure; it is not modified.
        spec: the input specification; None infers it from the model as far as possible. For a network with several
            inputs, a `NetworkSpec` or a mapping of `InputSpec` by name.
        generator: name of the generator, built-in or from a plugin.
        num_samples: exact number of samples in the finished set.
        seed: the same model, settings and seed give the same bytes on the same kind of machine.
        options: options of the generator, as a mapping or as its options record.
        output: folder of the data set. An interrupted run with the same settings is resumed, and a finished set with
            fewer samples is extended. None: a temporary folder that exists as long as the returned object.
        batch_size: number of samples optimized together, which is the shard size; None chooses it by the input size.
        max_seconds: time budget instead of a number of iterations. The bytes then depend on the speed of the machine. A
            resumed run has the whole time again for the missing shards. A `RunBudget` starts when it is created.
        threads: number of CPU threads; None keeps torch's number, or divides the cores among the ranks of a machine.
            The previous number is restored.
        listeners: called with every `ProgressEvent`, in addition to the listeners of plugins.
        registry: plugins to use; None uses the installed ones.

    Returns:
        The data set, with the teacher's outputs, and with labels if the network is known to be a classifier.

    Raises:
        UsageError: a count, option or name is invalid, or the shape cannot be inferred.
        PluginError: the generator is unknown or unavailable.
        ModelError: the model cannot be inverted (no trained BatchNorm) or does not accept the shape.
        DataError: the output folder belongs to another run or is not writable.
        DivergedError: the optimization diverged; finished shards are kept, and the run can be resumed.
    """
    for name, value in (("num_samples", num_samples), ("batch_size", batch_size), ("threads", threads)):
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}.")
    rank, budget = Rank.current(), RunBudget.of(max_seconds)
    registry = registry or get_registry()
    info = registry.find("generator", generator)
    with preserve_global_state(seed=seed), limited_threads(threads or rank.threads()), writable_compile_cache():
        record = registry.options("generator", generator, options)
        source = registry.create("generator", generator, record)
        teacher = frozen_copy(model)
        check_finite(teacher)
        digest = model_digest(teacher)  # before a forward pass, which may change buffers
        spec = resolve_spec(teacher, spec, registry)
        accepted = accepted_spec(source, info, spec)
        _check_supported(source, info, teacher, accepted, budget)
        warn_if_untrained(teacher)
        warn_of_normalization(impossible(spec))
        plan = DatasetPlan(
            model_digest=digest,
            generator=_generator_record(source, info, record),
            seed=seed,
            spec=spec,
            num_samples=num_samples,
            shard_size=batch_size or default_shard_size(spec),
            labels=_labels_kind(source, teacher, spec),
            max_seconds=None if budget is None else budget.seconds,
        )
        broadcast = Broadcast(listeners, registry)
        # The generator gets a separate copy, so that it cannot affect the teacher that labels the samples.
        generate = partial(source.generate, frozen_copy(teacher), accepted)
        shard_maker = ShardMaker(teacher, spec, generate, info, source.keeps_range, source.conditional)
        return write_dataset(output, plan, shard_maker, broadcast, rank=rank, budget=budget)


def default_shard_size(spec: Specification) -> int:
    """Return the default number of samples that are optimized together.

    >>> from dfq_plugins.types import InputSpec
    >>> default_shard_size(InputSpec((3, 32, 32))), default_shard_size(InputSpec((3, 224, 224)))
    (256, 32)
    """
    return max(SMALLEST_SHARD, min(LARGEST_SHARD, VALUES_PER_SHARD // spec.values))


def _check_supported(
    generator: DataGenerator, info: PluginInfo, model: nn.Module, spec: InputSpec, budget: RunBudget | None
) -> None:
    """Give the generator a chance to reject the model before the output folder is created."""
    if budget is not None and not generator.timed:
        raise UsageError(
            f"max_seconds needs a generator that supports a time budget, but the {info} does not. Omit max_seconds."
        )
    with attributed(info):
        generator.check_supported(model, spec)
    if generator.conditional:
        require_classes(model, spec, f"The {info} makes inputs for given classes, so it needs a classifier.")


def _generator_record(generator: DataGenerator, info: PluginInfo, options: Any) -> GeneratorRecord:
    """Return the generator and its options, including those that the generator filled in."""
    with attributed(info):
        resolved = asdict(generator.resolved_options(options))
    return GeneratorRecord(info.entry.name, info.distribution, info.version, resolved)


def _labels_kind(generator: DataGenerator, teacher: nn.Module, spec: Specification) -> str:
    if class_logits(trial_run(teacher, spec), spec.num_classes) is None:
        return "none"
    return "conditional" if generator.conditional else "teacher"
