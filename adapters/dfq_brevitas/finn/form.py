"""Rewrites a traced float network with the operators that FINN has hardware for, and rejects all others."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dfq_brevitas.finn.modules import Concatenation
from dfq_brevitas.finn.pools import replace_pools
from dfq_brevitas.finn.refusals import require_finn_operations
from dfq_brevitas.finn.shortcuts import replace_shortcuts
from dfq_brevitas.grid import OnGrid
from dfq_plugins.model_state import hooked

if TYPE_CHECKING:
    from dfq_brevitas.framework import GraphModule, Node
    from dfq_plugins.types import InputSpec

    Shape = tuple[int, ...]

_SPATIAL = frozenset((2, 3))
_IMAGE_RANK = 4


def finn_form(graph: GraphModule, spec: InputSpec) -> GraphModule:
    """Rewrite a float network with FINN's operators, in place, without changing what it computes.

    Means over a map become global average pooling, smaller averages become a depthwise convolution with constant
    weights, and the sliced and padded shortcut of ResNets becomes a 1x1 convolution.

    Args:
        graph: a traced float network with BatchNorm folded.
        spec: the input, whose shape decides which pooling covers the whole map.

    Raises:
        ModelError: FINN does not support an operation; the message names each one.
    """
    for node in list(graph.graph.nodes):
        _replace_mean(graph, node)
        _replace_concatenation(graph, node)
        _replace_moves(graph, node)
    graph.recompile()
    shapes = input_shapes(graph, spec)
    replace_pools(graph, shapes)
    replace_shortcuts(graph, shapes)
    graph.graph.lint()
    graph.recompile()
    require_finn_operations(graph)
    return graph


def input_shapes(graph: GraphModule, spec: InputSpec) -> dict[str, Shape]:
    """Run one sample of zeros and return the input shape of each module, by module name."""
    found: dict[str, Shape] = {}

    def record(name: str, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], torch.Tensor):
            found[name] = tuple(inputs[0].shape)

    hooks = (module.register_forward_pre_hook(partial(record, name)) for name, module in graph.named_modules())
    with torch.no_grad(), hooked(hooks):
        graph(torch.zeros(1, *spec.shape, device=next(graph.parameters()).device))
    return found


def _replace_mean(graph: GraphModule, node: Node) -> None:
    """Replace a mean over height and width with global average pooling."""
    if node.target not in ("mean", torch.mean) or len(node.all_input_nodes) != 1:
        return
    _, axes, keeps = _arguments(node, (("input", None), ("dim", None), ("keepdim", False)))
    if not isinstance(axes, (tuple, list)) or {axis % _IMAGE_RANK for axis in axes} != _SPATIAL:
        return
    pooled = insert_module(graph, node, f"{node.name}_pool", nn.AdaptiveAvgPool2d(1))
    if not keeps:
        pooled = insert_module(graph, node, f"{node.name}_flatten", nn.Flatten(), source=pooled)
    replace_node(graph, node, pooled)


def _replace_concatenation(graph: GraphModule, node: Node) -> None:
    if node.target is not torch.cat:
        return
    parts, axis = _arguments(node, (("tensors", ()), ("dim", 0)))
    name = f"{node.name}_concatenation"
    graph.add_module(name, Concatenation(int(axis)))
    with graph.graph.inserting_before(node):
        joined = graph.graph.call_module(name, tuple(parts))
    replace_node(graph, node, joined)


def _replace_moves(graph: GraphModule, node: Node) -> None:
    """Keep zero padding and nearest upsampling on the quantization grid."""
    if node.target is nn.functional.interpolate:
        _, size, factor, mode = _arguments(
            node, (("input", None), ("size", None), ("scale_factor", None), ("mode", "nearest"))
        )
        settings = {"size": size, "scale_factor": factor, "mode": mode}
        if mode == "nearest":
            moved = insert_module(graph, node, f"{node.name}_on_grid", OnGrid(nn.functional.interpolate, (), settings))
            replace_node(graph, node, moved)
        return
    module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
    if isinstance(module, nn.ZeroPad2d):
        graph.set_submodule(str(node.target), OnGrid(nn.functional.pad, (tuple(module.padding),), {}))
    elif isinstance(module, nn.Upsample) and module.mode == "nearest":
        settings = {"size": module.size, "scale_factor": module.scale_factor, "mode": "nearest"}
        graph.set_submodule(str(node.target), OnGrid(nn.functional.interpolate, (), settings))


def _arguments(node: Node, names: tuple[tuple[str, Any], ...]) -> tuple[Any, ...]:
    """Return a call's arguments, whether positional or keyword, with their defaults."""
    given = dict(zip((name for name, _ in names), node.args, strict=False)) | dict(node.kwargs)
    return tuple(given.get(name, default) for name, default in names)


def insert_module(graph: GraphModule, node: Node, name: str, module: nn.Module, *, source: Node | None = None) -> Node:
    """Call a new module in front of a node, on the output of `source`, or on the node's input if there is none."""
    graph.add_module(name, module)
    with graph.graph.inserting_before(node):
        return graph.graph.call_module(name, (source or node.all_input_nodes[0],))


def replace_node(graph: GraphModule, node: Node, other: Node) -> None:
    """Make all readers of a node read another one, and remove the node."""
    node.replace_all_uses_with(other)
    graph.graph.erase_node(node)
