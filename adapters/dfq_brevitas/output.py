"""Gives the network plain outputs: without a quantizer of their own, and as tensors of torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from dfq_brevitas.inserted import Place, place_of

if TYPE_CHECKING:
    from dfq_brevitas.framework import GraphModule, Node


def strip_output_quantizers(graph: GraphModule) -> None:
    """Pass: remove the quantizers that Brevitas inserted at the network's outputs, also before a final reshape.

    So logits keep the accumulator's precision. A layer that reads the same tensor keeps the quantizer.
    """
    for output in graph.graph.nodes:
        if output.op == "output":
            for source in output.all_input_nodes:
                _strip_quantizer(graph, output, source)


def _strip_quantizer(graph: GraphModule, reader: Node, node: Node) -> None:
    if node.op == "call_function" and isinstance(node.target, type):  # a named tuple of outputs
        for source in node.all_input_nodes:
            _strip_quantizer(graph, node, source)
        return
    while _only_reshapes(graph, node) and len(node.users) == 1:
        reader, node = node, node.all_input_nodes[0]
    if place_of(node) is Place.SUM_OUTPUT:
        reader.replace_input_with(node, node.args[0])
        if not node.users:
            graph.graph.erase_node(node)
            graph.delete_submodule(str(node.target))


def _only_reshapes(graph: GraphModule, node: Node) -> bool:
    if node.op == "call_module":
        return isinstance(graph.get_submodule(str(node.target)), (nn.Flatten, nn.Unflatten))
    if node.op == "call_function":
        return node.target in (torch.flatten, torch.reshape, torch.squeeze)
    return node.op == "call_method" and node.target in ("flatten", "reshape", "view", "squeeze")
