"""Scales that rate filters: one per filter of a group, shared by all BatchNorms of the group."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dfq_plugins.distillation.loss import DistillationLoss
from dfq_plugins.network.probe import record_calls

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from dfq_plugins.distillation.batches import Examples
    from dfq_plugins.distillation.options import TrainingOptions
    from dfq_plugins.distillation.sources import BatchSource
    from dfq_plugins.pruning.graph import FilterGroup
    from dfq_plugins.pruning.options import PruningOptions

_SPATIAL_AXES = 3
"""Axes of a feature with at least one spatial axis: batch, channels, positions."""


def group_scales(model: nn.Module, groups: Sequence[FilterGroup]) -> dict[str, Tensor]:
    """Return the size of each filter's scale by group, `(filters,)`: the root mean square over the BatchNorms."""
    return {group.name: _size(model, group) for group in groups}


def _size(model: nn.Module, group: FilterGroup) -> Tensor:
    members = [member for member in group.members if member.name in group.norms]
    found = []
    for member in members:
        weight = model.get_submodule(member.name).weight
        assert isinstance(weight, Tensor)  # noqa: S101  for the type checker: such groups are not made
        squares = weight.detach().square()
        found.append(torch.stack([squares[list(places)].mean() for places in member.places]))
    return torch.stack(found).mean(0).sqrt()


class _Shared(nn.Module):
    """A BatchNorm's relative scales times the scale that its group shares."""

    def __init__(self, scale: nn.Parameter, places: Tensor) -> None:
        super().__init__()
        self.scale = scale
        self._places = places

    def forward(self, ratios: Tensor) -> Tensor:
        """Return the scales of the layer, `(channels,)`."""
        return ratios * self.scale[self._places]


@contextmanager
def shared_scales(model: nn.Module, groups: Sequence[FilterGroup]) -> Iterator[dict[str, nn.Parameter]]:
    """Within the block, make the BatchNorms of each group share one scale per filter; yield all scales by group.

    The network's outputs do not change: each layer keeps its scales relative to the shared one.
    Source: Zhu et al. 2020 (arXiv 2010.07334), section on pruning: one shared scale for each residual group.
    """
    scales: dict[str, nn.Parameter] = {}
    shared: list[tuple[nn.Module, bool]] = []
    for group in groups:
        norms = [member for member in group.members if member.name in group.norms]
        single = model.get_submodule(norms[0].name)
        if len(norms) == 1 and all(len(places) == 1 for places in norms[0].places):
            assert isinstance(single.weight, nn.Parameter)  # noqa: S101  as above
            scales[group.name] = single.weight
            continue
        scale = scales[group.name] = nn.Parameter(_size(model, group))
        for member in norms:
            module = model.get_submodule(member.name)
            weight = module.weight
            assert isinstance(weight, nn.Parameter)  # noqa: S101  as above
            place_of = torch.empty(member.width, dtype=torch.long, device=weight.device)
            for channel, places in enumerate(member.places):
                place_of[list(places)] = channel
            with torch.no_grad():
                weight.div_(scale[place_of].clamp_min(torch.finfo(weight.dtype).tiny))
            shared.append((module, weight.requires_grad))
            weight.requires_grad_(False)
            parametrize.register_parametrization(module, "weight", _Shared(scale, place_of), unsafe=True)
    try:
        yield scales
    finally:
        for module, learns in shared:
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
            module.weight.requires_grad_(learns)


@dataclass
class Penalty:
    """The term added to the loss to shrink the scales.

    `warm-up * scale_penalty * sum over groups of (1 / width) * sum |scale| + weight_penalty / 2 * sum of squares`, the
    latter over all other weights and biases. Source: Zhu et al. 2020 (arXiv 2010.07334), section on pruning.

    Args:
        scales: scales of each group, with the width of its feature map and the indices to penalize.
        others: all other trainable parameters.
        options: both weights, and the warm-up of the first.
        progress: completed share of the steps.
    """

    scales: tuple[tuple[nn.Parameter, float, slice | list[int]], ...]
    others: tuple[nn.Parameter, ...]
    options: PruningOptions
    progress: float = 0.0

    def value(self) -> Tensor:
        """Return the current penalty, a scalar."""
        rise = min(1.0, self.progress / self.options.penalty_warm_up) if self.options.penalty_warm_up else 1.0
        sizes = torch.stack([scale[pressed].abs().sum() / width for scale, width, pressed in self.scales]).sum()
        total = rise * self.options.scale_penalty * sizes
        if self.options.weight_penalty and self.others:
            squares = torch.stack([parameter.square().sum() for parameter in self.others]).sum()
            total = total + 0.5 * self.options.weight_penalty * squares
        return total


def penalty_for(
    model: nn.Module,
    groups: Sequence[FilterGroup],
    scales: Mapping[str, nn.Parameter],
    sample: Tensor,
    options: PruningOptions,
    chosen: Mapping[str, list[int]] | None = None,
) -> Penalty:
    """Return the penalty on all or the chosen scales, and on the other parameters of the network."""
    known = {id(scale) for scale in scales.values()}
    others = tuple(p for p in model.parameters() if p.requires_grad and id(p) not in known)
    widths = map_widths(model, groups, sample)
    pressed = {name: slice(None) if chosen is None else chosen[name] for name in scales}
    return Penalty(tuple((scale, widths[name], pressed[name]) for name, scale in scales.items()), others, options)


def map_widths(model: nn.Module, groups: Sequence[FilterGroup], sample: Tensor) -> dict[str, float]:
    """Return the width of each group's feature map in pixels, mean over its BatchNorms; 1 without spatial axes."""
    entered = {call.name: call.entered for call in record_calls(model, sample)}

    def width(name: str) -> float:
        feature = entered.get(name)
        return float(feature.shape[-1]) if feature is not None and feature.ndim >= _SPATIAL_AXES else 1.0

    return {group.name: sum(map(width, group.norms)) / len(group.norms) for group in groups}


class SparsifyingLoss(DistillationLoss):
    """The distance from the teacher, with the penalty on the scales."""

    def __init__(self, teacher: nn.Module, options: TrainingOptions, *, penalty: Penalty, **arguments: Any) -> None:
        super().__init__(teacher, options, **arguments)
        self._penalty = penalty

    def forward(self, outputs: Any, inputs: Tensor, labels: Tensor | None = None, **known: Any) -> Tensor:
        """Return the sum of distance and penalty, a scalar."""
        return super().forward(outputs, inputs, labels, **known) + self._penalty.value()


class Paced:
    """A batch source that keeps the penalty's progress up to date, even after a resume."""

    def __init__(self, source: BatchSource, penalty: Penalty) -> None:
        self._source, self._penalty = source, penalty

    def batch(self, step: int, student: nn.Module, progress: float) -> Examples:
        """Return the batch for a step."""
        self._penalty.progress = progress
        return self._source.batch(step, student, progress)

    def capture(self) -> dict[str, Tensor]:
        """Return the state of the wrapped source."""
        return self._source.capture()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore the wrapped source."""
        self._source.restore(state)
