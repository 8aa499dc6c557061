"""Correction of BatchNorm statistics after pruning, before any training.

Removing a filter removes its mean, so all later layers would normalize by a mean and variance that no longer match
their input. Re-estimating both would replace the statistics of the training data with those of the synthetic data, so
they are only corrected by the difference that pruning makes on the same inputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from dfq_plugins.private_copy import private_copy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from dfq_plugins.pruning.graph import FilterGroup
    from dfq_plugins.pruning.selection import Removed

Statistics = dict[str, tuple[torch.Tensor, torch.Tensor]]
SMALLEST_VARIANCE = 1e-12


@torch.no_grad()
def recenter(
    pruned: nn.Module, whole: nn.Module, groups: Sequence[FilterGroup], removed: Removed, batches: Sequence[Tensor]
) -> None:
    """Correct the running statistics of a pruned network in place.

    `mean + (after - before)` and `variance * after / before`, where before and after are the statistics of the same
    inputs in the original and the pruned network.

    Args:
        pruned: the network without the filters.
        whole: the original network.
        groups: the groups of filters.
        removed: the removed filters.
        batches: inputs `(batch, *shape)`.
    """
    before, after = (batch_statistics(model, batches) for model in (whole, pruned))
    missing = _removed_outputs(groups, removed)
    for name, (mean, variance) in after.items():
        module = pruned.get_submodule(name)
        kept = [place for place in range(len(before[name][0])) if place not in missing.get(name, set())]
        was_mean, was_variance = (value[kept] for value in before[name])
        module.running_mean += mean - was_mean  # type: ignore[operator]
        module.running_var *= variance / was_variance.clamp_min(SMALLEST_VARIANCE)  # type: ignore[operator]


def batch_statistics(model: nn.Module, batches: Sequence[Tensor]) -> Statistics:
    """Return mean and variance of each BatchNorm's input, with each layer normalizing by its batch statistics.

    >>> network = nn.Sequential(nn.BatchNorm1d(1))
    >>> ((mean, variance),) = batch_statistics(network, [torch.tensor([[1.0], [3.0]])]).values()
    >>> mean.item(), variance.item()
    (2.0, 2.0)
    """
    private = private_copy(model).eval()
    norms: dict[str, nn.modules.batchnorm._BatchNorm] = {}
    for name, module in private.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:  # noqa: SLF001  no public base
            module.reset_running_stats()
            module.momentum = None  # a plain mean over the batches
            norms[name] = module.train()
    for batch in batches:
        private(batch.clone())
    return {
        name: (module.running_mean, module.running_var)
        for name, module in norms.items()
        if module.running_mean is not None and module.running_var is not None
    }


def _removed_outputs(groups: Sequence[FilterGroup], removed: Removed) -> dict[str, set[int]]:
    """Return the removed output channels of each layer."""
    found: dict[str, set[int]] = {}
    for group in groups:
        for member in group.members:
            if member.outputs:
                places = (place for channel in removed.get(group.name, ()) for place in member.places[channel])
                found.setdefault(member.name, set()).update(places)
    return found
