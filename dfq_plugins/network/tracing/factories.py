"""New tensors whose size follows the batch, written as methods of a tensor that has it.

A framework that traces the graph again passes a stand-in for the size, which `torch.zeros` does not take.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.fx import Graph, Node

_METHODS: dict[Callable[..., Any], str] = {
    torch.zeros: "new_zeros",
    torch.ones: "new_ones",
    torch.empty: "new_empty",
    torch.full: "new_full",
    torch.rand: "new_empty",
    torch.randn: "new_empty",
    torch.arange: "new_ones",
}
_DRAWN: dict[Callable[..., Any], Callable[..., Any]] = {torch.rand: torch.rand_like, torch.randn: torch.randn_like}
FACTORIES = frozenset(_METHODS)
"""The functions that `write_factory` writes."""


def write_factory(graph: Graph, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Node:
    """Write the call of a factory as a method of the network's first input.

    Args:
        graph: the graph that is being written.
        function: one of `FACTORIES`.
        args: its arguments, some of them nodes.
        kwargs: its keyword arguments.
    """
    tensor: Any = next(iter(graph.nodes))
    named = {key: value for key, value in kwargs.items() if key in {"dtype", "device"} and value is not None}
    if function is torch.arange:
        ones = graph.call_method("new_ones", (tensor, (args[0],)), {"dtype": torch.int64, **named})
        return graph.call_function(operator.sub, (graph.call_function(torch.cumsum, (ones, 0)), 1))
    if function is torch.full:
        return graph.call_method("new_full", (tensor, *args), named)
    sizes = args[0] if args and isinstance(args[0], (tuple, list)) else args or kwargs["size"]
    new = graph.call_method(_METHODS[function], (tensor, tuple(sizes)), named)
    return graph.call_function(_DRAWN[function], (new,)) if function in _DRAWN else new
