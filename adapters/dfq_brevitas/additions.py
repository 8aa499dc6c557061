"""Gives the inputs of additions a width of their own: shortcuts carry sums that grow through the network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dfq_brevitas.framework import ADD_FNS, ADD_METHODS

if TYPE_CHECKING:
    from torch import nn

    from dfq_brevitas.framework import GraphModule, Node


def quantize_additions(graph: GraphModule, quantizer: tuple[type[nn.Module], dict[str, Any]]) -> None:
    """Quantize both inputs of each addition by one new quantizer, so that they share their scale, in place.

    Call it before Brevitas inserts its own: an addition whose inputs share a scale is left as it is, and the
    activations before it keep a scale of their own.
    """
    kind, arguments = quantizer
    for node in list(graph.graph.nodes):
        if not _adds_two(node):
            continue
        name = f"{node.name}_quant"
        graph.add_module(name, kind(**arguments).eval())
        for source in node.all_input_nodes:
            with graph.graph.inserting_before(node):
                quantized = graph.graph.call_module(name, (source,))
            node.replace_input_with(source, quantized)
    graph.recompile()


def _adds_two(node: Node) -> bool:
    adds = node.op == "call_function" and node.target in ADD_FNS
    adds = adds or (node.op == "call_method" and node.target in ADD_METHODS)
    return adds and len(node.all_input_nodes) > 1
