"""The sliced and zero-padded shortcut of ResNets with option A, as a 1x1 convolution that selects channels."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from dfq_brevitas.finn.modules import ChannelSelection
from dfq_brevitas.grid import OnGrid

if TYPE_CHECKING:
    from dfq_brevitas.framework import GraphModule, Node

    Shape = tuple[int, ...]

_IMAGE_RANK = 4
_SPATIAL_PADS = 4  # torch lists left, right, top, bottom first, then those of the channels
_ALL_PADS = 6


@dataclass(frozen=True)
class _Selection:
    """Zero channels before and after, and the vertical and horizontal step."""

    before: int = 0
    after: int = 0
    stride: tuple[int, int] = (1, 1)


def replace_shortcuts(graph: GraphModule, shapes: dict[str, Shape]) -> None:
    """Replace strided slices and channel padding with convolutions, in place; other moves are left as they are.

    Args:
        graph: a float network whose slices and paddings are `OnGrid` modules.
        shapes: input shape of each module, `(batch, channels, height, width)`, by module name.
    """
    for node in list(graph.graph.nodes):
        selection = _selection(graph, node, shapes)
        if selection is None:
            continue
        channels = shapes[str(node.target)][1]
        module = ChannelSelection(channels, selection.before, selection.after, selection.stride)
        graph.set_submodule(str(node.target), module.eval())
    _join_pairs(graph)


def _join_pairs(graph: GraphModule) -> None:
    """Merge a slice that only a channel padding reads with that padding into one convolution."""
    for node in list(graph.graph.nodes):
        source = node.all_input_nodes[0] if node.all_input_nodes else node
        first, second = _module(graph, source), _module(graph, node)
        if source is node or not isinstance(first, ChannelSelection) or not isinstance(second, ChannelSelection):
            continue
        if len(source.users) > 1 or first.out_channels != first.in_channels or second.stride != (1, 1):
            continue
        before = int(second.weight.flatten(1).sum(1).argmax())
        after = second.out_channels - before - second.in_channels
        joined = ChannelSelection(first.in_channels, before, after, first.stride)
        graph.set_submodule(str(node.target), joined.eval())
        node.replace_input_with(source, source.all_input_nodes[0])
        graph.graph.erase_node(source)


def _selection(graph: GraphModule, node: Node, shapes: dict[str, Shape]) -> _Selection | None:
    """Return the selection that a move makes, or None if the move is not a selection."""
    module = _module(graph, node)
    if not isinstance(module, OnGrid) or len(shapes.get(str(node.target), ())) != _IMAGE_RANK:
        return None
    if module.function is operator.getitem:
        return _of_slice(module.args[0])
    if module.function is nn.functional.pad:
        pads = tuple(module.args[0] if module.args else module.kwargs["pad"])
        if len(pads) == _ALL_PADS and not any(pads[:_SPATIAL_PADS]):
            return _Selection(before=pads[_SPATIAL_PADS], after=pads[_SPATIAL_PADS + 1])
    return None


def _of_slice(index: Any) -> _Selection | None:
    """Return the steps of an index such as `[:, :, ::2, ::2]`."""
    if not isinstance(index, tuple) or len(index) != _IMAGE_RANK or not all(isinstance(part, slice) for part in index):
        return None
    whole = all(part.start in (None, 0) and part.stop is None for part in index)
    steps = [part.step or 1 for part in index]
    return _Selection(stride=(steps[2], steps[3])) if whole and steps[:2] == [1, 1] else None


def _module(graph: GraphModule, node: Node) -> Any:
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None
