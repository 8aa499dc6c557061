"""Lets observers in front of a clipping activation, such as ReLU6, observe what is left after clipping.

torch.ao fuses ReLU into the layer before it, but no other activation. It quantizes that layer's output over its whole
range, most of which ReLU6 then throws away: of 256 levels a few dozen remain. The integers saturate at the ends of
their range anyhow, so that quantizing over the activation's own range computes the same function with all levels.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dfq_torch_ao.observers import observer_of

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

Bounds = tuple[float | None, float | None]


def observe_clipped_values(prepared: GraphModule) -> int:
    """Clamp what observers see whose only readers clip it right afterwards.

    The graph computes the same as before, because the reader clips the clamped values once more.

    Args:
        prepared: what `prepare_fx` returned; changed in place.

    Returns:
        How many observers now see clipped values.
    """
    modules = dict(prepared.named_modules(remove_duplicate=False))
    places: dict[
        nn.Module, list[Node]
    ] = {}  # one observer may stand in several places, and then sets one scale for all
    for node in prepared.graph.nodes:
        if node.op == "call_module" and observer_of(modules[str(node.target)]) is not None:
            places.setdefault(modules[str(node.target)], []).append(node)
    clipped = {observer: _common_bounds(nodes, modules) for observer, nodes in places.items()}
    for observer, bounds in clipped.items():
        if bounds is not None:
            observer.register_forward_pre_hook(functools.partial(_clamp_input, bounds))
    return sum(bounds is not None for bounds in clipped.values())


def _common_bounds(nodes: list[Node], modules: dict[str, nn.Module]) -> Bounds | None:
    """Return the range that the values of all places of one observer are clipped to, before or after it."""
    bounds = {_bounds_after(node, modules) or _bounds_before(node, modules) for node in nodes}
    return bounds.pop() if len(bounds) == 1 else None


def _bounds_after(node: Node, modules: dict[str, nn.Module]) -> Bounds | None:
    bounds = {clipping_bounds(user, modules) for user in node.users}
    return bounds.pop() if len(bounds) == 1 else None


def _bounds_before(node: Node, modules: dict[str, nn.Module]) -> Bounds | None:
    """Return the range of the clipping activation that the node's values come from, through pooling and the like."""
    observer = modules[str(node.target)]
    while len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
        if (bounds := clipping_bounds(node, modules)) is not None:
            return bounds
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        if observer_of(module) is not None and module is not observer:
            return None
    return None


def clipping_bounds(node: Node, modules: dict[str, nn.Module]) -> Bounds | None:
    """Return the range that a node clips its input to, or None where it does something else."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        if isinstance(module, nn.Hardtanh):  # and its subclass ReLU6
            return float(module.min_val), float(module.max_val)
        return (0.0, None) if isinstance(module, nn.ReLU) else None
    if node.target in (nn.functional.relu6, torch.ops.aten.relu6):
        return 0.0, 6.0
    return (0.0, None) if node.target in (nn.functional.relu, torch.relu, "relu") else None


def _clamp_input(bounds: Bounds, _observer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0].clamp(*bounds), *inputs[1:])
