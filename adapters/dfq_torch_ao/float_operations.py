"""Below 8 bits, keeps operations in float if their int8 kernels would ignore the narrower range.

Sigmoid and similar operations always write 256 levels. Averages write the levels of their input: harmless with 256 of
them, but a mean of values on 16 levels uses only a few of them, unless the layer that reads it has a separate
quantizer.

torch.ao lowers dequantize -> operation -> quantize to the int8 kernel even if the operation has no QConfig. An identity
after the operation hides the pattern; it is removed after the conversion.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

FLOAT_OPERATIONS: tuple[Any, ...] = (
    nn.Hardsigmoid,
    nn.functional.hardsigmoid,
    "hardsigmoid",
    "hardsigmoid_",
    nn.Sigmoid,
    torch.sigmoid,
    "sigmoid",
    "sigmoid_",
    nn.Softmax,
    nn.Tanh,
    torch.tanh,
    "tanh",
    "tanh_",
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.functional.avg_pool1d,
    nn.functional.avg_pool2d,
    nn.functional.avg_pool3d,
    nn.functional.adaptive_avg_pool1d,
    nn.functional.adaptive_avg_pool2d,
    nn.functional.adaptive_avg_pool3d,
    torch.mean,
    "mean",
)
"""Module classes, functions and method names, in the form that a QConfigMapping accepts."""

_HIDING = torch.positive


def hide_from_lowering(prepared: GraphModule) -> None:
    """Insert an identity after every operation that must stay in float, in place."""
    modules = dict(prepared.named_modules(remove_duplicate=False))
    for node in list(prepared.graph.nodes):
        if stays_float(node, modules):
            with prepared.graph.inserting_after(node):
                identity = prepared.graph.call_function(_HIDING, (node,))
            node.replace_all_uses_with(identity)
            identity.update_arg(0, node)
    prepared.recompile()


def show_again(converted: GraphModule) -> None:
    """Remove the identities again, in place."""
    for node in list(converted.graph.nodes):
        if node.op == "call_function" and node.target is _HIDING:
            node.replace_all_uses_with(node.args[0])
            converted.graph.erase_node(node)
    converted.recompile()


def stays_float(node: Node, modules: dict[str, nn.Module]) -> bool:
    """Return whether a node calls one of `FLOAT_OPERATIONS`."""
    if node.op == "call_module":
        return type(modules[str(node.target)]) in FLOAT_OPERATIONS
    return node.op in ("call_function", "call_method") and node.target in FLOAT_OPERATIONS
