"""Gives the network's input quantizer the known range instead of the observed one."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.ao.quantization import MinMaxObserver

from dfq_plugins.network.graph_inputs import input_nodes
from dfq_torch_ao.observers import fixed_like, observer_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch.fx import GraphModule, Node

    from dfq_plugins.types import Specification

_MOVING_MODULES = (
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ChannelShuffle,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.ReflectionPad1d,
    nn.ReflectionPad2d,
    nn.ReflectionPad3d,
    nn.ReplicationPad1d,
    nn.ReplicationPad2d,
    nn.ReplicationPad3d,
    nn.CircularPad1d,
    nn.CircularPad2d,
    nn.CircularPad3d,
)
_CONSTANT_PADS = (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)
_MOVING_FUNCTIONS = (
    operator.getitem,
    torch.flatten,
    torch.reshape,
    torch.permute,
    torch.transpose,
    torch.squeeze,
    torch.unsqueeze,
    torch.clone,
    nn.functional.dropout,
    nn.functional.max_pool1d,
    nn.functional.max_pool2d,
    nn.functional.max_pool3d,
)
_MOVING_METHODS = frozenset(
    ("flatten", "reshape", "view", "permute", "transpose", "squeeze", "unsqueeze", "contiguous", "clone", "expand")
)


def moves_values(node: Node, modules: dict[str, nn.Module]) -> bool:
    """Return whether a node only moves, repeats, drops or zero-pads values: the range including zero is unchanged."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        if isinstance(module, _CONSTANT_PADS):
            return module.value == 0
        return isinstance(module, _MOVING_MODULES)
    if node.op == "call_function" and node.target is nn.functional.pad:
        return not _argument(node, 3, "value")
    if node.op == "call_function":
        return node.target in _MOVING_FUNCTIONS
    return node.op == "call_method" and node.target in _MOVING_METHODS


def _argument(node: Node, position: int, name: str) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name)


def fix_input_ranges(prepared: GraphModule, spec: Specification) -> int:
    """Replace each observer of an input whose range is known with one that has this range.

    Args:
        prepared: the graph module returned by `prepare_fx`; changed in place.
        spec: the specification of the inputs.

    Returns:
        Number of observers replaced: 0 if the network first computes with its input, e.g. normalizes it.
    """
    replaced = 0
    for placeholder, one in input_nodes(prepared, spec):
        if one.input_range is not None:
            replaced += _fix_input_range(prepared, placeholder, one.input_range)
    return replaced


def _fix_input_range(prepared: GraphModule, placeholder: Node, input_range: tuple[float, float]) -> int:
    modules = dict(prepared.named_modules(remove_duplicate=False))
    observers = {id(modules[str(node.target)]) for node in _input_observers(placeholder, modules)}
    replace_observers(prepared, observers, lambda observer: known_range(observer, input_range))
    return len(observers)


def replace_observers(prepared: GraphModule, observers: set[int], replacement: Callable[[Any], nn.Module]) -> None:
    """Replace the observers with these `id()`s, in place, under every name that they have.

    Operations that keep the range, such as max pooling, share one observer under several names.
    """
    for name, module in dict(prepared.named_modules(remove_duplicate=False)).items():
        if id(module) in observers:
            prepared.set_submodule(name, replacement(module))


def _input_observers(placeholder: Node, modules: dict[str, nn.Module]) -> Iterator[Node]:
    """Yield the nodes that observe an input, directly or after operations that only move its values."""
    reached = [placeholder]
    while reached:
        for node in reached.pop().users:
            if node.op == "call_module" and observer_of(modules[str(node.target)]) is not None:
                yield node
            elif moves_values(node, modules):
                reached.append(node)


def known_range(module: nn.Module, input_range: tuple[float, float]) -> nn.Module:
    """Return an observer or fake quantizer like `module`, with the scale and zero point of the given range."""
    observer: Any = observer_of(module)
    number_format = {name: getattr(observer, name) for name in ("dtype", "qscheme", "quant_min", "quant_max")}
    reference = MinMaxObserver(**number_format)
    reference(torch.tensor(input_range))
    scale, zero_point = reference.calculate_qparams()
    return fixed_like(module, scale.item(), zero_point.item())
