"""Makes the shards of a data set: the generator yields inputs, the teacher judges them, the writer keeps them."""

from __future__ import annotations

import logging
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dfq_plugins.data.writer import DatasetWriter
from dfq_plugins.errors import DataError, UsageError, first_line
from dfq_plugins.host.plugin_info import attributed, attributed_iterator
from dfq_plugins.model_state import device_of
from dfq_plugins.network.memory import forward, is_out_of_memory
from dfq_plugins.statistics.batch_norm import statistics_layers
from dfq_plugins.statistics.presentation import best_divergences
from dfq_plugins.storage.rank import Rank
from dfq_plugins.types import Batch, ProgressEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import nn

    from dfq_plugins.data.dataset import SyntheticDataset
    from dfq_plugins.data.plan import DatasetPlan
    from dfq_plugins.host.broadcast import Broadcast
    from dfq_plugins.host.plugin_info import PluginInfo
    from dfq_plugins.synthesis.budget import RunBudget
    from dfq_plugins.types import InputSpec

logger = logging.getLogger(__name__)

_MEASURED_SAMPLES = 16
_SMALL_BATCH = 8
_MEASURING_PASSES = 2  # for the divergences, with and without a border
_BYTES_PER_SECOND = 100e6  # of writing, syncing and checksums, on a slow disk


@dataclass(frozen=True)
class ShardMaker:
    """What makes the samples of a shard.

    Args:
        teacher: frozen network that gives labels and logits.
        spec: what one sample looks like.
        generate: the generator's method, with its own copy of the model and the specification already given.
        info: who provides the generator, for errors.
    """

    teacher: nn.Module
    spec: InputSpec
    generate: Callable[..., Iterable[Batch]]
    info: PluginInfo

    def make(self, size: int, seed: int, **settings: Any) -> Batch:
        """Return `size` samples; the settings are the generator's.

        Raises:
            UsageError: memory does not suffice.
        """
        rng = torch.Generator().manual_seed(seed)
        try:
            with attributed(self.info):
                batches = self.generate(num_samples=size, batch_size=size, rng=rng, **settings)
            return _judged(self.teacher, self.spec, _exactly(size, batches, self.info))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise UsageError(
                f"Memory does not suffice for a shard of {size} samples, in two halves either ({first_line(error)}). "
                f"Give a batch size well below {size}; finished shards are kept, and hold for the new one as well."
            ) from error


def write_dataset(
    output: Path | str | None,
    plan: DatasetPlan,
    shard_maker: ShardMaker,
    broadcast: Broadcast,
    *,
    rank: Rank,
    budget: RunBudget | None = None,
) -> SyntheticDataset:
    """Write every shard of the plan that the folder does not hold yet, and finish the data set.

    Args:
        output: folder of the data set; None makes a temporary one that lives as long as the returned object.
        plan: what it is to hold.
        shard_maker: makes the samples.
        broadcast: hears of progress.
        rank: which process of a distributed run this is; the ranks share the shards.
        budget: the time that it may take.
    """
    if output is not None:
        return _written(Path(output), plan, shard_maker, broadcast, rank, budget)
    owner = tempfile.TemporaryDirectory(prefix="dfq-")
    try:
        # The folder is this process's own, so that there is nothing to share.
        return _written(Path(owner.name), plan, shard_maker, broadcast, Rank(), budget, owner)
    except BaseException:
        owner.cleanup()
        raise


def _written(
    folder: Path,
    plan: DatasetPlan,
    shard_maker: ShardMaker,
    broadcast: Broadcast,
    rank: Rank,
    budget: RunBudget | None,
    owner: tempfile.TemporaryDirectory[str] | None = None,
) -> SyntheticDataset:
    with DatasetWriter.begin(folder, plan, rank) as writer:
        _write_shares(writer, plan, shard_maker, broadcast, rank, budget)
        writer.await_turn_to_finish()
        known: Mapping[str, float] = {}
        if not writer.is_complete and statistics_layers(shard_maker.teacher):
            known = _divergences(shard_maker.teacher, writer, plan.spec)
        dataset = writer.finish(known, owner=owner)
    if budget is not None and budget.left < 0:
        logger.warning(
            "%d samples took %.0f s, longer than their budget of %.0f s, with as few as %s iterations. "
            "Give more time, or ask for fewer samples.",
            *(plan.num_samples, budget.seconds - budget.left, budget.seconds),
            min((shard.iterations for shard in dataset.manifest.shards if shard.iterations is not None), default="no"),
        )
    return dataset


def _divergences(teacher: nn.Module, writer: DatasetWriter, spec: InputSpec) -> Mapping[str, float]:
    try:
        return best_divergences(teacher, writer.written_inputs(), spec)[1]
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    return best_divergences(teacher, writer.written_inputs(batch_size=_SMALL_BATCH), spec)[1]


def _write_shares(
    writer: DatasetWriter,
    plan: DatasetPlan,
    shard_maker: ShardMaker,
    broadcast: Broadcast,
    rank: Rank,
    budget: RunBudget | None,
) -> None:
    """Write the shards that fall to this process. What one shard takes of memory is free before the next begins."""
    after = 0.0 if budget is None else seconds_after_optimization(shard_maker.teacher, plan.spec)
    for shard in writer.shares():
        done = plan.num_samples - writer.samples_left
        settings: dict[str, Any] = {"report": _overall(broadcast, done, shard.num_samples, plan.num_samples)}
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


def seconds_after_optimization(teacher: nn.Module, spec: InputSpec) -> float:
    """Return the seconds that a sample takes besides its optimization, measured: a forward pass, and its file."""
    inputs = torch.zeros(_MEASURED_SAMPLES, *spec.shape, device=device_of(teacher))
    with torch.no_grad():
        teacher(inputs[:1])
        began = time.monotonic()
        teacher(inputs).sum().item()
    return (time.monotonic() - began) / len(inputs) + inputs[0].nbytes / _BYTES_PER_SECOND


def _overall(broadcast: Broadcast, done: int, size: int, total: int) -> Callable[[ProgressEvent], None]:
    """Turn a shard's progress into samples of the whole run."""

    def report(event: ProgressEvent) -> None:
        made = size * event.completed / max(event.total, 1)
        broadcast(ProgressEvent("synthesize", done + int(made), total, event.metrics, (done + made) / total))

    return report


def _exactly(size: int, batches: Iterable[Batch], info: PluginInfo) -> list[Batch]:
    """Run through a generator's batches, but not for ever where it yields too many.

    Raises:
        DataError: they hold another number of samples than asked for.
    """
    made: list[Batch] = []
    count = 0
    for batch in attributed_iterator(batches, info):
        made.append(batch)
        count += len(batch.inputs)
        if count > size:
            break
    if count != size:
        found = f"at least {count}" if count > size else str(count)
        raise DataError(f"{size} samples were asked of the {info}, and {found} came back. Report it to its author.")
    return made


def _judged(teacher: nn.Module, spec: InputSpec, made: list[Batch]) -> Batch:
    """Join a shard's batches, and let the teacher say what it sees in them."""
    inputs = torch.cat([batch.inputs.detach().float() for batch in made]).to(device_of(teacher))
    if spec.num_classes is None:
        return Batch(inputs)
    with torch.no_grad():
        logits = torch.cat(
            [forward(teacher, part) for part in torch.split(inputs, [len(batch.inputs) for batch in made])]
        )
    given = [batch.labels for batch in made if batch.labels is not None]
    return Batch(inputs, torch.cat(given) if len(given) == len(made) else logits.argmax(1), logits)
