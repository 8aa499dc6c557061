"""Makes observers in front of a clipping activation, such as ReLU6, observe the clipped values.

torch.ao fuses ReLU into the layer before it, but no other activation. It quantizes that layer's output over its whole
range, most of which ReLU6 then discards: of 256 levels, a few dozen remain. The integers saturate at the ends of their
range anyway, so quantizing over the activation's range computes the same function with all levels.
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
    """Clamp the inputs of observers whose only readers clip the values right afterwards.

    The graph computes the same as before, because the reader clips the clamped values again.

    Args:
        prepared: the graph module returned by `prepare_fx`; changed in place.

    Returns:
        Number of observers that now see clipped values.
    """
    modules = dict(prepared.named_modules(remove_duplicate=False))
    places: dict[nn.Module, list[Node]] = {}  # one observer may be used in several places, which then share its scale
    for node in prepared.graph.nodes:
        if node.op == "call_module" and observer_of(modules[str(node.target)]) is not None:
            places.setdefault(modules[str(node.target)], []).append(node)
    clipped = {observer: _common_bounds(nodes, modules) for observer, nodes in places.items()}
    for observer, bounds in clipped.items():
        if bounds is not None:
            observer.register_forward_pre_hook(functools.partial(_clamp_input, bounds))
    return sum(bounds is not None for bounds in clipped.values())


def _common_bounds(nodes: list[Node], modules: dict[str, nn.Module]) -> Bounds | None:
    """Return the range that the values are clipped to, before or after the observer, in all of its places."""
    bounds = {_bounds_after(node, modules) or _bounds_before(node, modules) for node in nodes}
    return bounds.pop() if len(bounds) == 1 else None


def _bounds_after(node: Node, modules: dict[str, nn.Module]) -> Bounds | None:
    bounds = {clipping_bounds(user, modules) for user in node.users}
    return bounds.pop() if len(bounds) == 1 else None


def _bounds_before(node: Node, modules: dict[str, nn.Module]) -> Bounds | None:
    """Return the range of the clipping activation that produces the node's values, looking through pooling etc."""
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
    """Return the range that a node clips its input to, or None if it does something else."""
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
