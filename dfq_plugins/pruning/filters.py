"""Structured pruning: scales are pressed toward zero, the smallest filters removed, and the rest trained again."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from dfq_plugins.distillation.loop import CheckpointDir, Student
from dfq_plugins.distillation.task import train
from dfq_plugins.errors import ModelError, UsageError, nearest
from dfq_plugins.network.cost import layer_multiply_adds, measure_cost
from dfq_plugins.pruning.graph import Groups, find_groups, remove_filters, same_answers, zero_filters
from dfq_plugins.pruning.importance import answer_changes
from dfq_plugins.pruning.recentering import recenter
from dfq_plugins.pruning.scales import Paced, SparsifyingLoss, group_scales, penalty_for, shared_scales
from dfq_plugins.pruning.selection import filter_multiply_adds, select_by_target, select_by_threshold

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from dfq_plugins.distillation.history import TrainingPoint
    from dfq_plugins.distillation.loss import DistillationLoss
    from dfq_plugins.distillation.options import TrainingOptions
    from dfq_plugins.distillation.sources import BatchSource
    from dfq_plugins.distillation.task import DistillationTask
    from dfq_plugins.pruning.options import PruningOptions
    from dfq_plugins.pruning.scales import Penalty
    from dfq_plugins.pruning.selection import Removed


COMPARED_SAMPLES, COMPARED_BATCH = 512, 128
"""Samples on which filters are judged, and BatchNorm statistics compared before and after they go."""

KEPT_VALUES, SMALLEST_BATCH = COMPARED_BATCH * 3 * 32 * 32, 8
"""Input values of a batch whose features and gradients are all kept, and the samples that it has at least."""


@dataclass(frozen=True)
class Amount:
    """How much goes: exactly one of these is given.

    Args:
        macs: share of the MACs that is left.
        threshold: filters with a smaller scale go.
        sparsity: share of the weights that is set to zero.
    """

    macs: float | None = None
    threshold: float | None = None
    sparsity: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) != 1:
            raise UsageError(
                "Say in one way how much is to go: macs=0.7 (share that is left), threshold=0.1 (filters with "
                f"a smaller scale), or sparsity=0.5 (share of single weights), got {', '.join(given) or 'none'}."
            )
        ((name, value),) = given.items()
        highest = float("inf") if name == "threshold" else 1.0
        if not 0 < value < highest:
            raise UsageError(f"{name} must be above 0 and below {highest:g}, got {value:g}.")


def sparsify(
    model: nn.Module,
    groups: Groups,
    task: DistillationTask,
    settings: TrainingOptions,
    options: PruningOptions,
    place: CheckpointDir,
    chosen: Removed | None = None,
) -> tuple[TrainingPoint, ...]:
    """Train a network while the penalty presses the scales of its filters, or of the chosen ones, to zero, in place."""
    with shared_scales(model, groups.usable) as scales:
        penalty = penalty_for(model, groups.usable, scales, task.sample, options, chosen)
        return train(
            Student(model, tuple(scales.values())),
            task,
            replace(settings, steps=options.sparsity_steps),
            place,
            make_loss=_with(penalty),
            pace=lambda source: _paced(source, penalty),
            keep_best=False,  # the best answers are those from before
        )


def _with(penalty: Penalty) -> Callable[..., DistillationLoss]:
    def make(teacher: nn.Module, options: TrainingOptions, *, student: nn.Module, sample: Tensor) -> SparsifyingLoss:
        return SparsifyingLoss(teacher, options, student, sample, penalty)

    return make


def _paced(source: BatchSource, penalty: Penalty) -> BatchSource:
    return Paced(source, penalty)


def prunable(model: nn.Module, task: DistillationTask, options: PruningOptions) -> Groups:
    """Return which filters can go.

    Raises:
        UsageError: a layer to keep is not in the network.
        PluginError: torch-pruning is not installed.
        ModelError: the network cannot be traced, or nothing of it can be pruned.
    """
    names = {name for name, _ in model.named_modules()}
    for name in options.keep:
        if name not in names:
            raise UsageError(
                f"The option keep names {name!r}, and the network has no such layer.{nearest(name, names)}"
            )
    return find_groups(model, task.sample, options.keep)


def selected(
    model: nn.Module,
    groups: Groups,
    task: DistillationTask,
    amount: Amount,
    options: PruningOptions,
    settings: TrainingOptions,
) -> Removed:
    """Return which filters go, by group.

    Raises:
        UsageError: a layer would be emptied; names it.
    """
    if amount.threshold is not None:
        return select_by_threshold(groups.usable, group_scales(model, groups.usable), amount.threshold)
    assert amount.macs is not None  # noqa: S101  for the type checker: one of both is given
    shape = task.spec.shape
    costs = layer_multiply_adds(model, shape) | {"": measure_cost(model, shape).macs}
    if options.importance == "scale":
        sizes = group_scales(model, groups.usable)
    else:
        batches = _some(task, gradient_batch(task.sample[0].numel()))
        changes = answer_changes(model, groups.usable, batches, settings.temperature, settings.seed)
        sizes = {group.name: changes[group.name] / filter_multiply_adds(group, costs) for group in groups.usable}
    return select_by_target(groups.usable, sizes, costs, amount.macs, options.fewest)


def _some(task: DistillationTask, batch: int = COMPARED_BATCH) -> tuple[Tensor, ...]:
    """Return inputs, in batches, on which networks are compared."""
    return torch.split(task.examples.inputs[:COMPARED_SAMPLES].to(task.sample.device), batch)


def gradient_batch(values: int) -> int:
    """Return how many inputs of so many values go together where all features and their gradients are kept.

    >>> gradient_batch(3 * 32 * 32), gradient_batch(3 * 224 * 224)
    (128, 8)
    """
    return max(SMALLEST_BATCH, min(COMPARED_BATCH, KEPT_VALUES // values))


def take_out(model: nn.Module, groups: Groups, removed: Removed, task: DistillationTask) -> None:
    """Remove filters in place, make sure that the network answers as if they were zero, and correct its statistics.

    Raises:
        ModelError: it does not.
    """
    whole, zeroed = copy.deepcopy(model), copy.deepcopy(model)
    zero_filters(zeroed, groups.usable, removed)
    remove_filters(model, task.sample, groups.usable, removed)
    if not same_answers(zeroed, model, task.sample):
        raise ModelError(
            f"Without its filters {type(model).__name__} does not answer as with these filters at zero, so that "
            "torch-pruning took out what does not belong to them. Name the layers to prune last in the option keep, "
            "or set single weights to zero instead (sparsity)."
        )
    recenter(model, whole, groups.usable, removed, _some(task))
