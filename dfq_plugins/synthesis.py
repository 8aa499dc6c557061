"""Makes the shards of a data set: the generator yields inputs, the teacher judges them, the writer keeps them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dfq_plugins.errors import DataError
from dfq_plugins.model_state import device_of
from dfq_plugins.presentation import best_divergences
from dfq_plugins.provided import attributed, attributed_iterator
from dfq_plugins.statistics import statistics_layers
from dfq_plugins.types import Batch, ProgressEvent
from dfq_plugins.writer import DatasetWriter

if TYPE_CHECKING:
    import tempfile
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from torch import nn

    from dfq_plugins.dataset import SyntheticDataset
    from dfq_plugins.listeners.broadcast import Broadcast
    from dfq_plugins.plan import DatasetPlan
    from dfq_plugins.provided import Provided
    from dfq_plugins.ranks import Rank
    from dfq_plugins.types import InputSpec


def write_dataset(
    folder: Path,
    plan: DatasetPlan,
    teacher: nn.Module,
    generate: Callable[..., Iterable[Batch]],
    provided: Provided,
    broadcast: Broadcast,
    owner: tempfile.TemporaryDirectory[str] | None,
    rank: Rank,
) -> SyntheticDataset:
    """Write every shard of the plan that the folder does not hold yet, and finish the data set.

    Args:
        folder: where the data set lies.
        plan: what it is to hold.
        teacher: frozen network that gives labels and logits.
        generate: the generator's method, with its own copy of the model and the specification already given.
        provided: who provides the generator, for errors.
        broadcast: hears of progress.
        owner: the temporary directory that `folder` is, if it is one.
        rank: which process of a distributed run this is; the ranks share the shards.
    """
    with DatasetWriter.begin(folder, plan, rank) as writer:
        for shard in writer.shares():
            done = plan.num_samples - writer.samples_left
            report = _overall(broadcast, done, shard.num_samples, plan.num_samples)
            rng = torch.Generator().manual_seed(writer.shard_seed(shard))
            size = shard.num_samples
            with attributed(provided):
                batches = generate(num_samples=size, batch_size=size, rng=rng, report=report)
            writer.write(shard, *_judged(teacher, plan.spec, _exactly(size, batches, provided)))
        writer.await_turn_to_finish()
        divergence: Mapping[str, float] = {}
        if not writer.is_complete and statistics_layers(teacher):
            _, divergence = best_divergences(teacher, writer.written_inputs(), plan.spec)
        return writer.finish(divergence, owner=owner)


def _overall(broadcast: Broadcast, done: int, size: int, total: int) -> Callable[[ProgressEvent], None]:
    """Turn a shard's progress into samples of the whole run."""

    def report(event: ProgressEvent) -> None:
        samples = done + size * event.completed // max(event.total, 1)
        broadcast(ProgressEvent("synthesize", samples, total, event.metrics))

    return report


def _exactly(size: int, batches: Iterable[Batch], provided: Provided) -> list[Batch]:
    """Run through a generator's batches, but not for ever where it yields too many.

    Raises:
        DataError: they hold another number of samples than asked for.
    """
    made: list[Batch] = []
    count = 0
    for batch in attributed_iterator(batches, provided):
        made.append(batch)
        count += len(batch.inputs)
        if count > size:
            break
    if count != size:
        found = f"at least {count}" if count > size else str(count)
        raise DataError(f"{size} samples were asked of the {provided}, and {found} came back. Report it to its author.")
    return made


def _judged(teacher: nn.Module, spec: InputSpec, made: list[Batch]) -> Batch:
    """Join a shard's batches, and let the teacher say what it sees in them."""
    inputs = torch.cat([batch.inputs.detach().float() for batch in made]).to(device_of(teacher))
    if spec.num_classes is None:
        return Batch(inputs)
    with torch.no_grad():
        logits = torch.cat([teacher(part) for part in torch.split(inputs, [len(batch.inputs) for batch in made])])
    given = [batch.labels for batch in made if batch.labels is not None]
    return Batch(inputs, torch.cat(given) if len(given) == len(made) else logits.argmax(1), logits)
