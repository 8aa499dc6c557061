"""Gives the network's input quantizer the known range instead of the observed one."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dfq_plugins.network.graph_inputs import input_nodes
from dfq_shared.observers import observers_of_input, replace_observers
from dfq_torch_ao.observers import known_range, observer_of

if TYPE_CHECKING:
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

    def observes(node: Node) -> bool:
        return node.op == "call_module" and observer_of(modules[str(node.target)]) is not None

    found = observers_of_input(placeholder, observes, lambda node: moves_values(node, modules))
    observers = {id(modules[str(node.target)]) for node in found}
    replace_observers(prepared, observers, lambda observer: known_range(observer, input_range))
    return len(observers)
