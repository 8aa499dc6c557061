"""Writing into a part of a tensor, `x[:, :4] = y`, as a function of both: frameworks copy tensors on the way."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dfq_plugins.network.tracing.operation import SHAPE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.fx import Graph, Node


def replace_items(target: Tensor, index: Any, value: Any) -> Tensor:
    """Return a copy of `target` in which `index` selects `value`.

    >>> replace_items(torch.zeros(3), slice(1, 3), 5.0).tolist()
    [0.0, 5.0, 5.0]
    """
    copied = target.clone()
    copied[index] = value
    return copied


def write_replacement(graph: Graph, target: Node, index: Any, value: Any, shape: Sequence[int]) -> Node | None:
    """Write `replace_items` with functions that every framework and exporter knows; None for any other kind of index.

    Args:
        graph: the graph that is being written.
        target: the tensor to write into.
        index: integers, slices, an ellipsis, or a mask of truth values.
        value: the node or number to write.
        shape: the shape of the target.
    """
    items = index if isinstance(index, tuple) else (index,)
    if len(items) == 1 and hasattr(items[0], "op"):
        number = isinstance(value, (int, float))
        return graph.call_function(torch.where, (items[0], value, target)) if number else None
    items = _for_every_axis(items, len(shape))
    slices = _as_slices(items, shape)
    if slices is None:
        return None
    for axis in reversed(range(len(shape))):
        if isinstance(items[axis], int) and hasattr(value, "op"):
            value = graph.call_function(torch.unsqueeze, (value, axis - len(shape)))
    written: Node = _written(graph, target, slices, value, shape, 0)
    return written


def _for_every_axis(items: tuple[Any, ...], axes: int) -> tuple[Any, ...]:
    """Return the index with one item for each axis: an ellipsis stands for the axes that are not named.

    >>> _for_every_axis((..., 0), 3)
    (slice(None, None, None), slice(None, None, None), 0)
    """
    place = next((index for index, item in enumerate(items) if item is Ellipsis), None)
    if place is None:
        return (*items, *[slice(None)] * (axes - len(items)))
    return (*items[:place], *[slice(None)] * (axes - len(items) + 1), *items[place + 1 :])


def _as_slices(items: tuple[Any, ...], shape: Sequence[int]) -> list[slice] | None:
    """Return one slice for each axis, or None for an index that is made of anything but numbers."""
    if len(items) != len(shape) or any(not isinstance(item, (int, slice)) for item in items):
        return None
    edges = [edge for item in items if isinstance(item, slice) for edge in (item.start, item.stop, item.step)]
    if any(not isinstance(edge, (int, type(None))) for edge in edges):
        return None
    found = []
    for item, size in zip(items, shape, strict=True):
        start = item % size if isinstance(item, int) else 0
        found.append(slice(start, start + 1) if isinstance(item, int) else item)
    return found


def _written(graph: Graph, target: Node, slices: list[slice], value: Any, shape: Sequence[int], axis: int) -> Any:
    """Write `value` into the part of `target` that the slices from `axis` on select."""
    while axis < len(slices) and slices[axis].indices(shape[axis]) == (0, shape[axis], 1):
        axis += 1
    if axis == len(slices):
        if isinstance(value, (int, float)):
            return graph.call_function(torch.full_like, (target, value))
        fits = value.meta.get(SHAPE) == tuple(shape)
        return value if fits else graph.call_method("expand_as", (value, target))
    start, stop, step = slices[axis].indices(shape[axis])
    before = (slice(None),) * axis
    part = graph.call_function(operator.getitem, (target, (*before, slice(start, stop, step))))
    selected = [len(range(start, stop, step)) if index == axis else size for index, size in enumerate(shape)]
    written = _written(graph, part, slices, value, selected, axis + 1)
    if step == 1:
        ends = [slice(None, start)] * (start > 0) + [slice(stop, None)] * (stop < shape[axis])
        pieces = [graph.call_function(operator.getitem, (target, (*before, end))) for end in ends]
        pieces.insert(int(start > 0), written)
        return graph.call_function(torch.cat, (pieces, axis))
    places = graph.call_function(torch.arange, (start, stop, step))
    return graph.call_function(torch.index_copy, (target, axis, places, written))
