"""Passes plain tensors to operations that do not support Brevitas's quantized tensors."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

from torch import nn

from dfq_brevitas.framework import QuantTensor, quant_nn
from dfq_brevitas.quantizers import LAYERS

if TYPE_CHECKING:
    from dfq_brevitas.framework import GraphModule, Node


class Dequantize(nn.Module):
    """Extracts the plain tensor from Brevitas's quantized tensor, for operations that do not support it."""

    def forward(self, inputs: Any) -> Any:
        """Return the values."""
        return plain(inputs)


def plain(value: Any) -> Any:
    """Return the values of one of Brevitas's quantized tensors; anything else as it is."""
    return value.value if isinstance(value, QuantTensor) else value


def dequantize_foreign_operations(graph: GraphModule) -> None:
    """Pass: insert a `Dequantize` before the output and before each operation that may get a quantized tensor."""
    graph.add_module("dequantize", Dequantize())
    for node in list(graph.graph.nodes):
        if not _is_foreign(graph, node):
            continue
        for source in node.all_input_nodes:
            if source.op == "call_module" and isinstance(graph.get_submodule(str(source.target)), _float_kinds()):
                continue
            with graph.graph.inserting_before(node):
                values = graph.graph.call_module("dequantize", (source,))
            node.replace_input_with(source, values)


def _float_kinds() -> tuple[type[nn.Module], ...]:
    """Return the layers that return plain tensors."""
    return (quant_nn.QuantLinear, quant_nn.QuantConv1d, quant_nn.QuantConv2d, quant_nn.QuantConv3d)


def _is_foreign(graph: GraphModule, node: Node) -> bool:
    if node.op == "call_module":
        module = graph.get_submodule(str(node.target))
        in_float = type(module).__module__.startswith("torch.nn.") and next(module.parameters(), None) is not None
        return type(module) in LAYERS or in_float
    if node.op == "call_method":
        return str(node.target) not in _KNOWN_METHODS
    if node.op == "call_function":
        home = getattr(node.target, "__module__", "")
        if isinstance(node.target, type):  # a named tuple of outputs
            return True
        return home in ("_operator", "operator", "builtins") and node.target not in _KNOWN_OPERATORS
    return str(node.op) == "output"


_KNOWN_OPERATORS = (operator.add, operator.iadd, getattr)
_KNOWN_METHODS = frozenset(("size", "dim", "add", "view", "reshape", "flatten", "transpose", "permute", "contiguous"))
