"""Makes the shards of a data set: the generator yields inputs, the teacher labels them, the writer stores them."""

from __future__ import annotations

import logging
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dfq_plugins.data.writer import DatasetWriter
from dfq_plugins.errors import DataError, UsageError, first_line
from dfq_plugins.host.plugin_info import attributed, attributed_iterator
from dfq_plugins.inputs import blank_inputs, cloned, count, joined, leaves, map_inputs, moved, rows, split
from dfq_plugins.model_state import device_of, seed_global_state
from dfq_plugins.network.memory import forward, is_out_of_memory
from dfq_plugins.network.normalization import clamped_share, mean_of, unlikely, warn_of_normalization
from dfq_plugins.network.origin import different_outputs
from dfq_plugins.network.outputs import class_logits, joined_outputs, sample_outputs
from dfq_plugins.statistics.batch_norm import statistics_layers
from dfq_plugins.statistics.presentation import best_divergences
from dfq_plugins.storage.rank import Rank
from dfq_plugins.synthesis.generator_checks import check_batch, check_labels
from dfq_plugins.types import Batch, ProgressEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import nn

    from dfq_plugins.data.dataset import SyntheticDataset
    from dfq_plugins.data.plan import DatasetPlan
    from dfq_plugins.host.broadcast import Broadcast
    from dfq_plugins.host.plugin_info import PluginInfo
    from dfq_plugins.synthesis.budget import RunBudget
    from dfq_plugins.types import Specification

logger = logging.getLogger(__name__)

_COMPARED_SAMPLES = 8
_MEASURED_SAMPLES = 16
_SMALL_BATCH = 8
_MEASURING_PASSES = 2  # for the divergences, with and without padding
_BYTES_PER_SECOND = 100e6  # writing, syncing and checksums on a slow disk


@dataclass(frozen=True)
class ShardMaker:
    """Makes the samples of a shard.

    Args:
        teacher: frozen network that provides labels and outputs.
        spec: the input specification.
        generate: the generator's method, with a separate copy of the model and the specification already bound.
        info: the plugin that provides the generator, for error messages.
        bounded: whether the generator keeps inputs in their range.
        conditional: whether it yields labels.
    """

    teacher: nn.Module
    spec: Specification
    generate: Callable[..., Iterable[Batch]]
    info: PluginInfo
    bounded: bool = False
    conditional: bool = False

    def make(self, size: int, seed: int, **settings: Any) -> Batch:
        """Return `size` samples; the settings are passed to the generator.

        Raises:
            UsageError: memory is insufficient.
        """
        rng = torch.Generator().manual_seed(seed)
        seed_global_state(seed)  # for networks and generators that draw from the global random state
        try:
            with attributed(self.info):
                batches = self.generate(num_samples=size, batch_size=size, rng=rng, **settings)
            made = _collect_exactly(size, batches, self.info, self._checked)
            labels = check_labels(made, self.spec.num_classes, self.info, conditional=self.conditional)
            return _labeled(self.teacher, self.spec, made, labels)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise UsageError(
                f"Out of memory for a shard of {size} samples, even in two halves ({first_line(error)}). "
                f"Give a batch size well below {size}; finished shards are kept and remain valid."
            ) from error

    def _checked(self, batch: Any) -> Batch:
        """Return a copy of a batch, because a generator may use its buffer again."""
        kept = check_batch(batch, self.spec, self.info, bounded=self.bounded)
        return kept._replace(inputs=cloned(kept.inputs), labels=None if kept.labels is None else kept.labels.clone())


def write_dataset(
    output: Path | str | None,
    plan: DatasetPlan,
    shard_maker: ShardMaker,
    broadcast: Broadcast,
    *,
    rank: Rank,
    budget: RunBudget | None = None,
) -> SyntheticDataset:
    """Write the missing shards of the plan, and finish the data set.

    Args:
        output: folder of the data set; None creates a temporary one that exists as long as the returned object.
        plan: the data set to write.
        shard_maker: makes the samples.
        broadcast: receives the progress events.
        rank: this process's rank in a distributed run; the ranks share the shards.
        budget: the time budget, if any.
    """
    if output is not None:
        return _write_folder(Path(output), plan, shard_maker, broadcast, rank, budget)
    owner = tempfile.TemporaryDirectory(prefix="dfq-")
    try:
        # No other process uses the folder, so there is nothing to share.
        return _write_folder(Path(owner.name), plan, shard_maker, broadcast, Rank(), budget, owner)
    except BaseException:
        owner.cleanup()
        raise


def _write_folder(
    folder: Path,
    plan: DatasetPlan,
    shard_maker: ShardMaker,
    broadcast: Broadcast,
    rank: Rank,
    budget: RunBudget | None,
    owner: tempfile.TemporaryDirectory[str] | None = None,
) -> SyntheticDataset:
    with DatasetWriter.begin(folder, plan, rank) as writer:
        _require_same_network(writer, shard_maker)
        _write_shards(writer, plan, shard_maker, broadcast, rank, budget)
        writer.await_turn_to_finish()
        by_layer: Mapping[str, float] = {}
        if not writer.is_complete and statistics_layers(shard_maker.teacher):
            by_layer = _divergences(shard_maker.teacher, writer, plan.spec)
        dataset = writer.finish(by_layer, owner=owner)
    if rank.leads:
        divergence = mean_of(dataset.manifest.divergence)
        clamped = clamped_share(dataset.batches(), plan.spec) if divergence else None
        warn_of_normalization(unlikely(clamped, divergence))
    if budget is not None and budget.left < 0:
        logger.warning(
            "%d samples took %.0f s, more than the budget of %.0f s, with as few as %s iterations. "
            "Allow more time, or request fewer samples.",
            *(plan.num_samples, budget.seconds - budget.left, budget.seconds),
            min((shard.iterations for shard in dataset.manifest.shards if shard.iterations is not None), default="no"),
        )
    return dataset


def _require_same_network(writer: DatasetWriter, shard_maker: ShardMaker) -> None:
    """Reject a folder whose samples were labeled by a network with the same weights that computes something else.

    Raises:
        DataError: the network returns other outputs than those stored.
    """
    written = writer.first_written(_COMPARED_SAMPLES)
    if written is None:
        return
    if fault := different_outputs(shard_maker.teacher, written, shard_maker.spec):
        raise DataError(
            f"The data in {writer.folder} was made from another model: {fault}. Give that model, or choose another "
            "output folder."
        )


def _divergences(teacher: nn.Module, writer: DatasetWriter, spec: Specification) -> Mapping[str, float]:
    try:
        return best_divergences(teacher, writer.written_inputs(), spec)[1]
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    return best_divergences(teacher, writer.written_inputs(batch_size=_SMALL_BATCH), spec)[1]


def _write_shards(
    writer: DatasetWriter,
    plan: DatasetPlan,
    shard_maker: ShardMaker,
    broadcast: Broadcast,
    rank: Rank,
    budget: RunBudget | None,
) -> None:
    """Write this process's shards. The memory of one shard is freed before the next one begins."""
    after = 0.0 if budget is None else seconds_after_optimization(shard_maker.teacher, plan.spec)
    for shard in writer.shares():
        done = plan.num_samples - writer.samples_left
        settings: dict[str, Any] = {"report": _overall_progress(broadcast, done, shard.num_samples, plan.num_samples)}
        shard_budget = None
        if budget is not None:
            ahead = writer.samples_ahead(shard)
            reserve = after * (_MEASURING_PASSES * plan.num_samples + ahead / rank.count)
            settings["budget"] = shard_budget = budget.allow(
                samples=shard.num_samples, ahead=ahead, processes=rank.count, reserve=reserve
            )
        batch = shard_maker.make(shard.num_samples, writer.shard_seed(shard), **settings)
        writer.write(shard, *batch, iterations=None if shard_budget is None else shard_budget.iterations)
        del batch


def seconds_after_optimization(teacher: nn.Module, spec: Specification) -> float:
    """Return the seconds per sample after its optimization: a measured forward pass, and writing its file."""
    inputs = blank_inputs(spec, _MEASURED_SAMPLES, device_of(teacher))
    with torch.no_grad():
        spec.run(teacher, rows(inputs, slice(1)))
        began = time.monotonic()
        outputs = sample_outputs(spec.run(teacher, inputs), _MEASURED_SAMPLES)
        sum(output.sum().item() for output in outputs.values())
    written: int = sum(tensor[0].nbytes for tensor in leaves(inputs))
    return (time.monotonic() - began) / _MEASURED_SAMPLES + written / _BYTES_PER_SECOND


def _overall_progress(broadcast: Broadcast, done: int, size: int, total: int) -> Callable[[ProgressEvent], None]:
    """Convert a shard's progress to samples of the whole run."""

    def report(event: ProgressEvent) -> None:
        made = size * event.completed / max(event.total, 1)
        broadcast(ProgressEvent("synthesize", done + int(made), total, event.metrics, (done + made) / total))

    return report


def _collect_exactly(
    size: int, batches: Iterable[Batch], info: PluginInfo, checked: Callable[[Any], Batch]
) -> list[Batch]:
    """Collect a generator's batches, each checked; stop as soon as there are too many samples.

    Raises:
        DataError: the number of samples differs from `size`.
    """
    made: list[Batch] = []
    made_so_far = 0
    for batch in attributed_iterator(batches, info):
        made.append(checked(batch))
        made_so_far += count(batch.inputs)
        if made_so_far > size:
            break
    if made_so_far != size:
        found = f"at least {made_so_far}" if made_so_far > size else str(made_so_far)
        raise DataError(f"The {info} was asked for {size} samples but yielded {found}. Report this to its author.")
    return made


def _labeled(teacher: nn.Module, spec: Specification, made: list[Batch], labels: torch.Tensor | None) -> Batch:
    """Join a shard's batches and add the teacher's outputs, and the labels if it is a classifier."""
    detached = [map_inputs(lambda tensor: tensor.detach().float(), batch.inputs) for batch in made]
    inputs = map_inputs(torch.Tensor.contiguous, moved(joined(detached), device_of(teacher)))
    sizes = [count(batch.inputs) for batch in made]
    with torch.no_grad():
        outputs = joined_outputs(forward(partial(spec.run, teacher), part) for part in split(inputs, sizes))
    logits = class_logits(outputs, spec.num_classes)
    if logits is None:
        return Batch(inputs, None, outputs)
    return Batch(inputs, logits.argmax(1) if labels is None else labels, outputs)
