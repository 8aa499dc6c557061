"""Removes the quantizer of the network's output, so that logits keep the accumulator's precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from dfq_brevitas.inserted import Place, place_of

if TYPE_CHECKING:
    from dfq_brevitas.framework import GraphModule, Node


def strip_output_quantizers(graph: GraphModule) -> None:
    """Pass: remove the quantizers that Brevitas inserted at the network's output, also before a final reshape."""
    for output in graph.graph.nodes:
        if output.op == "output":
            for source in output.all_input_nodes:
                _strip_quantizer(graph, source)


def _strip_quantizer(graph: GraphModule, node: Node) -> None:
    while _only_reshapes(graph, node):
        node = node.all_input_nodes[0]
    if place_of(node) is Place.SUM_OUTPUT:
        node.replace_all_uses_with(node.args[0])
        graph.graph.erase_node(node)
        graph.delete_submodule(str(node.target))


def _only_reshapes(graph: GraphModule, node: Node) -> bool:
    if node.op == "call_module":
        return isinstance(graph.get_submodule(str(node.target)), (nn.Flatten, nn.Unflatten))
    if node.op == "call_function":
        return node.target in (torch.flatten, torch.reshape, torch.squeeze)
    return node.op == "call_method" and node.target in ("flatten", "reshape", "view", "squeeze")
