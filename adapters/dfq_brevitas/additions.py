"""Gives the inputs of additions a separate bit width: shortcuts carry sums that grow through the network."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from torch import nn

from dfq_brevitas.framework import ADD_FNS, ADD_METHODS, nonlinear, quant_nn
from dfq_brevitas.grid import OnGrid
from dfq_brevitas.inserted import Place, place_of

if TYPE_CHECKING:
    from dfq_brevitas.framework import GraphModule, Node


class Shortcut(nn.Module):
    """An activation that only an addition reads; the addition quantizes it separately."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = copy.deepcopy(activation)

    def forward(self, inputs: Any) -> Any:
        """Apply the activation."""
        return self.activation(inputs)


def quantize_additions(graph: GraphModule, quantizer: tuple[type[nn.Module], dict[str, Any]]) -> None:
    """Pass: quantize both inputs of each addition with one new quantizer, so that they share a scale, in place.

    Call it before Brevitas inserts its quantizers: Brevitas skips an addition if its inputs share a scale.
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


def split_shortcuts(graph: GraphModule) -> None:
    """Pass: make the quantizers of additions read activations before they are quantized for the layers, in place.

    Call it after Brevitas has inserted its quantizers. The activation is then applied twice: once for the layers, at
    their width, and once for the addition.
    """
    for addition in filter(_adds_two, list(graph.graph.nodes)):
        for quantized in addition.all_input_nodes:
            _split(graph, quantized)


def is_addition(node: Node) -> bool:
    """Return whether Brevitas treats a node as an addition."""
    known = {"call_function": ADD_FNS, "call_method": ADD_METHODS}
    return node.target in known.get(node.op, ())


def _adds_two(node: Node) -> bool:
    return is_addition(node) and len(node.all_input_nodes) > 1


def _split(graph: GraphModule, reader: Node) -> None:
    source = reader.all_input_nodes[0]
    while _module(graph, source, OnGrid) is not None and len(source.users) == 1:
        reader, source = source, source.all_input_nodes[0]
    quantizer = _module(graph, source, nonlinear.QuantNonLinearActLayer)
    if quantizer is None:
        return
    if isinstance(quantizer, quant_nn.QuantIdentity):
        if place_of(source) is Place.SUM_OUTPUT:  # inserted for the following layers
            reader.replace_input_with(source, source.all_input_nodes[0])
        return
    name = f"{source.name}_shortcut"
    if name not in dict(graph.named_children()):
        graph.add_module(name, Shortcut(quantizer.act_quant.fused_activation_quant_proxy.activation_impl))
    with graph.graph.inserting_before(reader):
        shortcut = graph.graph.call_module(name, source.args)
    reader.replace_input_with(source, shortcut)


def _module(graph: GraphModule, node: Node, kind: type[nn.Module]) -> Any | None:
    """Return the module that a node calls if it has the given type, otherwise None."""
    module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
    return module if isinstance(module, kind) else None
