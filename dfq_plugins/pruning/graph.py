"""Groups of filters that must be removed together, and their removal, based on torch-pruning's dependency graph.

Removing a filter also removes an input channel of the next layers; where a residual connection adds features, all
layers that write to it lose the same filter. torch-pruning finds these groups by following the gradient graph. It
assumes that every unknown operation keeps channels in place, so each group is verified first: the network without a
filter must return the same outputs as the network with that filter set to zero.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dfq_plugins.errors import ModelError, PluginError
from dfq_plugins.network.outputs import named_outputs
from dfq_plugins.private_copy import private_copy
from dfq_plugins.pruning.tracing import require_traceable, traced

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

WITH_FILTERS = (nn.modules.conv._ConvNd, nn.Linear)  # noqa: SLF001  no public base
NORMS = (nn.modules.batchnorm._BatchNorm,)  # noqa: SLF001  as above
TOLERANCE = 1e-6
"""Largest allowed difference between the float64 outputs of equivalent networks, as a share of the largest output."""

HARMLESS = (
    *("Relu", "LeakyRelu", "Hardtanh", "Silu", "Gelu", "Elu", "Hardswish"),
    *("AvgPool", "MaxPool", "AdaptiveAvgPool", "AdaptiveMaxPool", "Mean"),
    *("Add", "Sub", "Mul", "Cat", "Reshape", "Slice", "Output", "Native", "Cudnn"),
)
"""Name prefixes of operations that keep every channel in place and map zero to zero."""


@dataclass(frozen=True)
class Member:
    """One side of a layer that belongs to a group.

    Args:
        name: name of the layer.
        outputs: whether the layer's outputs or its inputs belong to the group.
        places: channel indices on this side for each of the group's filters; several after a flatten.
        width: number of channel indices on this side.
    """

    name: str
    outputs: bool
    places: tuple[tuple[int, ...], ...]
    width: int


@dataclass(frozen=True)
class FilterGroup:
    """Filters that can only be removed together.

    Args:
        name: the first layer of the group.
        members: all layers that lose channels with a filter, the first layer first.
        norms: names of the BatchNorm layers among them.
        operations: names of the operations between them.
    """

    name: str
    members: tuple[Member, ...]
    norms: tuple[str, ...]
    operations: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Number of filters."""
        return len(self.members[0].places)


@dataclass(frozen=True)
class Groups:
    """The groups of a network that can be pruned, and the layers that cannot, each with the reason."""

    usable: tuple[FilterGroup, ...]
    left: tuple[tuple[str, str], ...]


def find_groups(model: nn.Module, sample: Tensor, keep: Sequence[str] = ()) -> Groups:
    """Return the groups of filters of a network that can be removed.

    Args:
        model: a network in eval mode; not changed.
        sample: inputs `(batch, *shape)`.
        keep: layers whose groups are not pruned.

    Raises:
        PluginError: torch-pruning is not installed.
        ModelError: the network cannot be traced, or no part of it can be pruned.
    """
    private = _trainable(model)
    graph = _graph(private, sample)
    found = [_record(graph, group, private) for group in graph.get_all_groups(root_module_types=WITH_FILTERS)]
    tied = _tied_layers(private)
    reasons = {group.name: _obstacle(group, private, keep, tied) for group in found}
    usable = [group for group in found if not reasons[group.name]]
    for group in _failing(model, sample, usable):
        reasons[group.name] = f"{_suspects(group)} moves or changes its channels"
    usable = [group for group in usable if not reasons[group.name]]
    left = tuple((name, reason) for name, reason in reasons.items() if reason)
    if not usable:
        details = "; ".join(f"{name}: {reason}" for name, reason in left) or "no layer with filters was found"
        raise ModelError(
            f"No filter of {type(model).__name__} can be removed ({details}). Set individual weights to zero instead: "
            "sparsity=0.5, or --sparsity 0.5."
        )
    return Groups(tuple(usable), left)


@torch.no_grad()
def zero_filters(model: nn.Module, groups: Iterable[FilterGroup], removed: Mapping[str, Sequence[int]]) -> None:
    """Set filters to zero in place, including the scales and shifts of the BatchNorms after them."""
    for group in groups:
        for member in group.members:
            module = model.get_submodule(member.name)
            if member.outputs:
                places = [place for channel in removed.get(group.name, ()) for place in member.places[channel]]
                for parameter in (module.weight, module.bias):
                    if isinstance(parameter, torch.Tensor):
                        parameter[places] = 0.0


def remove_filters(
    model: nn.Module, sample: Tensor, groups: Iterable[FilterGroup], removed: Mapping[str, Sequence[int]]
) -> None:
    """Remove filters in place, along with the weights that read them.

    Raises:
        PluginError: torch-pruning is not installed.
    """
    flags = {name: value.requires_grad for name, value in model.named_parameters(remove_duplicate=False)}
    model.requires_grad_(requires_grad=True)
    graph = _graph(model, sample)
    for group in groups:
        channels = list(removed.get(group.name, ()))
        if channels:
            layer = model.get_submodule(group.name)
            graph.get_pruning_group(layer, graph.get_pruner_of_module(layer).prune_out_channels, channels).prune()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(flags[name])
        parameter.grad = None


def same_answers(first: nn.Module, second: nn.Module, inputs: Tensor) -> bool:
    """Return whether two networks give the same outputs, up to float64 rounding."""
    with torch.no_grad():
        ours, theirs = (named_outputs(private_copy(model).double()(inputs.double())) for model in (first, second))
    return all(_same(output, theirs[name]) for name, output in ours.items())


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    return bool((one - other).abs().max() <= TOLERANCE * one.abs().max().clamp_min(TOLERANCE))


def _graph(model: nn.Module, sample: Tensor) -> Any:
    """Return torch-pruning's dependency graph of a network whose parameters require gradients."""
    try:
        import torch_pruning  # noqa: PLC0415  optional
    except ImportError as error:
        raise PluginError(
            'Removing filters needs torch-pruning, which is not installed. Run: pip install "dfq-plugins[pruning]"'
        ) from error
    require_traceable(model, sample)
    with traced(model):
        # A tuple, because torch-pruning would unpack a bare tensor along the batch axis.
        return torch_pruning.DependencyGraph().build_dependency(
            model, (sample,), output_transform=lambda returned: list(named_outputs(returned).values()), verbose=False
        )


def _trainable(model: nn.Module) -> nn.Module:
    return private_copy(model).eval().requires_grad_(requires_grad=True)


def _record(graph: Any, group: Any, model: nn.Module) -> FilterGroup:
    names = {module: name for name, module in model.named_modules()}
    members, norms, operations = [], [], []
    for item in group:
        module, outputs = item.dep.target.module, graph.is_out_channel_pruning_fn(item.dep.handler)
        width = None
        if module in names and (isinstance(module, NORMS) or any(True for _ in module.parameters(recurse=False))):
            width = graph.get_out_channels(module) if outputs else graph.get_in_channels(module)
        if width is None:  # not a layer, or a layer with a single value for all channels
            operations.append(_operation(module))
            continue
        places: list[list[int]] = [[] for _ in range(len(group[0].idxs))]
        for place, channel in zip(item.idxs, item.root_idxs, strict=True):
            places[channel].append(place)
        members.append(Member(names[module], outputs, tuple(map(tuple, places)), width))
        if isinstance(module, NORMS) and sum(map(len, places)) == width:  # not after a concatenation
            norms.append(names[module])
    return FilterGroup(names[group[0].dep.target.module], tuple(members), tuple(norms), tuple(operations))


def _operation(module: Any) -> str:
    """Return the name of an operation, extracted from torch-pruning's name for it.

    >>> class FromGradient:
    ...     def __repr__(self):
    ...         return "_ElementWiseOp_17(ConstantPadNdBackward0)"
    >>> _operation(FromGradient())
    'ConstantPadNd'
    """
    text = type(module).__name__ if isinstance(module, nn.Parameter) else str(module)
    found = re.search(r"\((\w+?)Backward\d*\)", text)
    return found[1] if found else re.sub(r"^_|_\d+\(.*$|\(.*$", "", text)


def _tied_layers(model: nn.Module) -> dict[str, str]:
    """Return the layers that share a parameter with another layer, each with that other layer."""
    holders: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            holders.setdefault(id(parameter), []).append(name)
    shared = [names for names in holders.values() if len(names) > 1]
    return {name: next(other for other in names if other != name) for names in shared for name in names}


def _obstacle(group: FilterGroup, model: nn.Module, keep: Sequence[str], tied: Mapping[str, str]) -> str:
    """Return why a group cannot be pruned; an empty string if it can."""
    names = [member.name for member in group.members]
    if any(name in keep for name in names):
        return "excluded by the option keep"
    if shared := next((name for name in names if name in tied), None):
        return f"{shared} shares its weights with {tied[shared]}"
    if not any(not member.outputs for member in group.members):
        return "its filters are the network's outputs"
    if not group.norms:
        return "no BatchNorm follows it, so there is no scale to rate its filters by"
    if any(model.get_submodule(name).weight is None for name in group.norms):
        return "its BatchNorm has no scales"
    return ""


def _failing(model: nn.Module, sample: Tensor, groups: Sequence[FilterGroup]) -> list[FilterGroup]:
    """Return the groups that cannot be removed, found by bisection."""
    if not groups or _removable(model, sample, groups):
        return []
    if len(groups) == 1:
        return list(groups)
    half = len(groups) // 2
    return _failing(model, sample, groups[:half]) + _failing(model, sample, groups[half:])


def _removable(model: nn.Module, sample: Tensor, groups: Sequence[FilterGroup]) -> bool:
    """Return whether removing every third filter gives the same outputs as setting it to zero."""
    trial = {group.name: range(0, group.size, 3) if group.size > 1 else () for group in groups}
    zeroed, shorter = _trainable(model), _trainable(model)
    zero_filters(zeroed, groups, trial)
    try:
        remove_filters(shorter, sample, groups, trial)
        return same_answers(zeroed, shorter, sample)
    except (RuntimeError, IndexError, ValueError):  # shapes no longer match
        return False


def _suspects(group: FilterGroup) -> str:
    """Name the operations that may move channels, or all of them if none is unusual."""
    unusual = [name for name in dict.fromkeys(group.operations) if name != "T" and not name.startswith(HARMLESS)]
    return ", ".join(unusual or dict.fromkeys(group.operations)) or "an operation without gradient"
