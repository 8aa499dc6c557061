"""Makes inserted quantizers signed or unsigned as their values need: an unused sign bit wastes half the levels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dfq_brevitas.additions import is_addition
from dfq_brevitas.framework import quant_nn
from dfq_brevitas.grid import OnGrid
from dfq_brevitas.inserted import Place, inserted_at

if TYPE_CHECKING:
    from dfq_brevitas.framework import GraphModule, Node

_POOLINGS = (
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.Dropout,
    nn.Flatten,
    nn.ZeroPad2d,
)
_SIGN_KEEPING_FUNCTIONS = (torch.flatten, torch.reshape, torch.mean, torch.sum, torch.cat)
_SIGN_KEEPING_METHODS = frozenset(("flatten", "reshape", "view", "mean", "sum", "permute", "transpose", "contiguous"))


def make_signed(graph: GraphModule, quantizer: tuple[Any, dict[str, Any]]) -> None:
    """Pass: replace the unsigned quantizers that get a value which can be negative with signed ones.

    Brevitas assumes that a quantizer around a join is unsigned where it finds nothing that says otherwise: it would cut
    off everything below zero. A quantizer that several nodes share is replaced for all of them.

    Args:
        graph: the graph after Brevitas has inserted its quantizers; changed in place.
        quantizer: class and arguments of a signed quantizer.
    """
    kind, arguments = quantizer
    signed: dict[int, nn.Module] = {}
    identities = [(node, module) for node, module in _called(graph) if isinstance(module, quant_nn.QuantIdentity)]
    for node, module in identities:
        if not module.act_quant.is_signed and not _never_negative(graph, node.args[0]):
            signed.setdefault(id(module), kind(**arguments).eval())
    for node, module in identities:
        if id(module) in signed:
            graph.set_submodule(str(node.target), signed[id(module)])


def _called(graph: GraphModule) -> list[tuple[Node, Any]]:
    calls = [node for node in graph.graph.nodes if node.op == "call_module"]
    return [(node, graph.get_submodule(str(node.target))) for node in calls]


def make_inputs_unsigned(graph: GraphModule, quantizer: tuple[Any, dict[str, Any]]) -> None:
    """Pass: replace the signed quantizers of layer inputs that are never negative with unsigned ones.

    Args:
        graph: the graph after Brevitas has inserted its quantizers; changed in place.
        quantizer: class and arguments of an unsigned quantizer.
    """
    kind, arguments = quantizer
    for node in inserted_at(graph, Place.LAYER_INPUT):
        if _never_negative(graph, node.args[0]):
            graph.set_submodule(str(node.target), kind(**arguments).eval())


def _never_negative(graph: GraphModule, node: Node) -> bool:
    """Return whether a node's values come from ReLUs through operations that keep the sign."""
    if node.op == "call_module":
        module = graph.get_submodule(str(node.target))
        if isinstance(module, (quant_nn.QuantReLU, quant_nn.QuantSigmoid)):
            return True
        keeps = isinstance(module, (*_POOLINGS, OnGrid, quant_nn.QuantIdentity))
    elif node.op == "call_function":
        keeps = is_addition(node) or node.target in _SIGN_KEEPING_FUNCTIONS
    else:
        keeps = node.op == "call_method" and (is_addition(node) or node.target in _SIGN_KEEPING_METHODS)
    sources = [source for source in node.all_input_nodes if source.target != "size"]
    lowered = any(isinstance(value, (int, float)) and value < 0 for value in node.args) and is_addition(node)
    return keeps and not lowered and bool(sources) and all(_never_negative(graph, source) for source in sources)
