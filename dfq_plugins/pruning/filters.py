"""Structured pruning: push scales toward zero, remove the smallest filters, and retrain the network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from dfq_plugins.distillation.loop import CheckpointDir, Student
from dfq_plugins.distillation.task import train
from dfq_plugins.errors import ModelError, UsageError, nearest
from dfq_plugins.network.cost import layer_multiply_adds, measure_cost
from dfq_plugins.private_copy import private_copy
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
"""Samples used to rate filters and to compare BatchNorm statistics before and after pruning."""

KEPT_VALUES, SMALLEST_BATCH = COMPARED_BATCH * 3 * 32 * 32, 8
"""Maximum input values, and minimum samples, of a batch whose features and gradients are all kept in memory."""


@dataclass(frozen=True)
class Amount:
    """How much to prune; exactly one field is given.

    Args:
        macs: share of the MACs to keep.
        threshold: remove filters with a smaller scale.
        sparsity: share of the weights to set to zero.
    """

    macs: float | None = None
    threshold: float | None = None
    sparsity: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) != 1:
            raise UsageError(
                "Give exactly one amount to prune: macs=0.7 (share to keep), threshold=0.1 (remove filters with a "
                f"smaller scale), or sparsity=0.5 (share of individual weights), got {', '.join(given) or 'none'}."
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
    """Train a network in place while a penalty pushes the scales of all or the chosen filters toward zero."""
    with shared_scales(model, groups.usable) as scales:
        penalty = penalty_for(model, groups.usable, scales, task.sample, options, chosen)
        return train(
            Student(model, tuple(scales.values())),
            task,
            replace(settings, steps=options.sparsity_steps),
            place,
            make_loss=_penalized_loss(penalty),
            pace=lambda source: _paced(source, penalty),
            keep_best=False,  # agreement with the teacher is best before this training
        )


def _penalized_loss(penalty: Penalty) -> Callable[..., DistillationLoss]:
    def make(teacher: nn.Module, options: TrainingOptions, **arguments: Any) -> SparsifyingLoss:
        return SparsifyingLoss(teacher, options, penalty=penalty, **arguments)

    return make


def _paced(source: BatchSource, penalty: Penalty) -> BatchSource:
    return Paced(source, penalty)


def prunable(model: nn.Module, task: DistillationTask, options: PruningOptions) -> Groups:
    """Return the filters that can be removed.

    Raises:
        UsageError: a layer to keep is not in the network.
        PluginError: torch-pruning is not installed.
        ModelError: the network cannot be traced, or no part of it can be pruned.
    """
    names = {name for name, _ in model.named_modules()}
    for name in options.keep:
        if name not in names:
            raise UsageError(
                f"The option keep names {name!r}, but the network has no such layer.{nearest(name, names)}"
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
    """Return the filters to remove, by group.

    Raises:
        UsageError: a layer would lose all its filters.
    """
    if amount.threshold is not None:
        return select_by_threshold(groups.usable, group_scales(model, groups.usable), amount.threshold)
    assert amount.macs is not None  # noqa: S101  for the type checker: one of the two is given
    costs = layer_multiply_adds(model, task.spec) | {"": measure_cost(model, task.spec).macs}
    if options.importance == "scale":
        sizes = group_scales(model, groups.usable)
    else:
        batches = _comparison_batches(task, gradient_batch(task.sample[0].numel()))
        changes = answer_changes(
            model, groups.usable, batches, settings.temperature, settings.seed, task.spec.num_classes
        )
        sizes = {group.name: changes[group.name] / filter_multiply_adds(group, costs) for group in groups.usable}
    return select_by_target(groups.usable, sizes, costs, amount.macs, options.fewest)


def _comparison_batches(task: DistillationTask, batch: int = COMPARED_BATCH) -> tuple[Tensor, ...]:
    """Return batches of inputs to compare networks on."""
    return torch.split(task.examples.inputs[:COMPARED_SAMPLES].to(task.sample.device), batch)


def gradient_batch(values: int) -> int:
    """Return the batch size for inputs of this many values when all features and their gradients are kept.

    >>> gradient_batch(3 * 32 * 32), gradient_batch(3 * 224 * 224)
    (128, 8)
    """
    return max(SMALLEST_BATCH, min(COMPARED_BATCH, KEPT_VALUES // values))


def take_out(model: nn.Module, groups: Groups, removed: Removed, task: DistillationTask) -> None:
    """Remove filters in place, check that this equals setting them to zero, and correct the BatchNorm statistics.

    Raises:
        ModelError: the outputs differ from those with the filters set to zero.
    """
    whole, zeroed = private_copy(model), private_copy(model)
    zero_filters(zeroed, groups.usable, removed)
    remove_filters(model, task.sample, groups.usable, removed)
    if not same_answers(zeroed, model, task.sample):
        raise ModelError(
            f"Removing filters from {type(model).__name__} changes its outputs more than setting them to zero, so "
            "torch-pruning removed the wrong channels. Exclude layers from pruning with the option keep, or set "
            "individual weights to zero instead (sparsity)."
        )
    recenter(model, whole, groups.usable, removed, _comparison_batches(task))
