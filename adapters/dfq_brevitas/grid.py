"""Operations that only move values, which keep quantized tensors on their grid.

This aligns a shortcut that slices (ResNets with option A) with the branch that it is added to, and keeps Brevitas from
slicing a quantized tensor as a plain tuple.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

from torch import nn

from dfq_brevitas.framework import QuantTensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfq_brevitas.framework import GraphModule, Node


class OnGrid(nn.Identity):
    """Applies a function that only moves values or adds zeros, so that quantized values stay on their grid.

    It subclasses Identity because Brevitas looks through identities for the quantizer that feeds an addition.
    """

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.function, self.args, self.kwargs = function, args, kwargs

    def forward(self, inputs: Any) -> Any:
        """Apply the function to a tensor, or to the values of a quantized tensor."""
        if isinstance(inputs, QuantTensor):
            return inputs.set(value=self.function(inputs.value, *self.args, **self.kwargs))
        return self.function(inputs, *self.args, **self.kwargs)

    def extra_repr(self) -> str:
        """Name the function."""
        return getattr(self.function, "__name__", str(self.function))


def keep_moves_on_grid(graph: GraphModule) -> None:
    """Pass: replace slicing and zero padding with `OnGrid` modules."""
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or not _moves_values(node):
            continue
        kwargs = dict(node.kwargs)
        source, *rest = node.args or (kwargs.pop("input"),)
        name = f"{node.name}_on_grid"
        graph.add_module(name, OnGrid(node.target, tuple(rest), kwargs))
        with graph.graph.inserting_before(node):
            moved = graph.graph.call_module(name, (source,))
        node.replace_all_uses_with(moved)
        graph.graph.erase_node(node)


def _moves_values(node: Node) -> bool:
    """Return whether a function node slices or zero-pads a single tensor by constants."""
    if len(node.all_input_nodes) != 1:
        return False
    if node.target is operator.getitem:
        index = node.args[1]
        # A plain integer may select an element of a tuple of tensors, which is not a tensor operation.
        return isinstance(index, (tuple, slice)) and "size" not in node.all_input_nodes[0].name
    if node.target is nn.functional.pad:
        value = node.kwargs.get("value", node.args[3] if len(node.args) > 3 else None)  # noqa: PLR2004  its position
        mode = node.kwargs.get("mode", node.args[2] if len(node.args) > 2 else "constant")  # noqa: PLR2004
        return not value or mode != "constant"
    return False
