"""Keeps activations of fewer than 8 bits within their levels.

An observer's `quant_max` only sets the scale: torch.ao's kernels clip at the ends of uint8, not of a narrower range.
Values beyond the observed range would use levels that the recipe does not have.
"""

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING

import torch

from dfq_torch_ao.tensor_formats import is_quantized_module, is_quantized_operation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.fx import GraphModule, Node

    from dfq_torch_ao.tensor_formats import TensorFormat

SATURATION_PREFIX = "saturate_"
"""Name prefix of the nodes inserted here."""


def saturate_activations(converted: GraphModule, formats: Mapping[Node, TensorFormat], highest: int) -> None:
    """Clamp every requantized tensor to the integers 0..`highest`, in place and on the integers.

    Args:
        converted: the graph to insert the clamps into.
        formats: its tensors' scales and zero points.
        highest: the highest integer of the recipe, 15 for four bits.
    """
    for node, form in formats.items():
        if form.scale is None or form.zero_point is None or not _requantizes(node, converted):
            continue
        bounds = ((0 - form.zero_point) * form.scale, (highest - form.zero_point) * form.scale)
        with converted.graph.inserting_after(node):
            clamp = converted.graph.create_node(
                "call_function", torch.clamp, (node, *bounds), name=f"{SATURATION_PREFIX}{node.name}"
            )
        node.replace_all_uses_with(clamp, delete_user_cb=functools.partial(operator.is_not, clamp))
    converted.recompile()


def _requantizes(node: Node, converted: GraphModule) -> bool:
    """Return whether the node writes integers with a new scale; pooling and reshaping keep that of their input."""
    if node.op == "call_module":
        return is_quantized_module(converted.get_submodule(str(node.target)))
    return node.target is torch.quantize_per_tensor or is_quantized_operation(node)
