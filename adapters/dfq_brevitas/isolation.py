"""Hides from Brevitas what its graph walks do not understand, for networks that it cannot align or run otherwise.

Each input of an addition or concatenation gets a quantizer of its own, and every function becomes a module that takes
and returns plain tensors. That costs a quantizer more at some inputs, and the inputs do not share a scale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dfq_brevitas.additions import is_addition
from dfq_brevitas.foreign import plain
from dfq_brevitas.framework import QuantTensor
from dfq_plugins.network.tracing.tail import tail

if TYPE_CHECKING:
    from dfq_brevitas.framework import GraphModule, Node

    Quantizer = tuple[type[nn.Module], dict[str, Any]]


_JOINS = frozenset((torch.cat, torch.stack))
_ACTIVATIONS = (nn.Sigmoid, nn.Tanh)
"""Activations that Brevitas quantizes and that make scores; a ReLU costs nothing and stays with its layer."""


class PlainCall(nn.Module):
    """Calls a function of torch, or a method of a tensor, on plain tensors."""

    def __init__(self, node: Node, reason: str) -> None:
        super().__init__()
        self.operation, self.target, self.reason = node.op, node.target, reason

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the result of the call; quantized tensors are passed as their values."""
        values, named = _plain_arguments(args), _plain_arguments(kwargs)
        if self.operation == "call_method":
            return getattr(values[0], self.target)(*values[1:], **named)
        return self.target(*values, **named)

    def extra_repr(self) -> str:
        """Name the function."""
        return str(getattr(self.target, "__name__", self.target))


def _plain_arguments(value: Any) -> Any:
    """Return arguments with plain tensors; a quantized tensor is itself a named tuple."""
    if isinstance(value, QuantTensor):
        return plain(value)
    if isinstance(value, (tuple, list)):
        return type(value)(map(_plain_arguments, value))
    if isinstance(value, dict):
        return {key: _plain_arguments(item) for key, item in value.items()}
    return value


class PlainModule(nn.Module):
    """Calls a module on plain tensors; Brevitas does not look into it."""

    def __init__(self, module: nn.Module, reason: str) -> None:
        super().__init__()
        self.module, self.reason = module, reason

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the result of the module; quantized tensors are passed as their values."""
        return self.module(*_plain_arguments(args), **_plain_arguments(kwargs))


def isolate_functions(graph: GraphModule) -> None:
    """Pass: turn every function and method into a module of which Brevitas knows nothing, in place."""
    for node in list(graph.graph.nodes):
        if node.op in {"call_function", "call_method"}:
            _isolate(graph, node, "Brevitas cannot align the quantizers of this network")


def isolate_shifts(graph: GraphModule) -> None:
    """Pass: turn additions of a number into modules of which Brevitas knows nothing, in place.

    They join nothing, so there is nothing to align. Brevitas would quantize what they read and what they return: the
    denominator of a division, with its small number against 0, became 0.
    """
    for node in list(graph.graph.nodes):
        if is_addition(node) and len(node.all_input_nodes) == 1:
            _isolate(graph, node, "adds a number, so there is nothing to align")


def isolate_tail(graph: GraphModule) -> None:
    """Pass: turn joins and activations behind the last layers into modules of which Brevitas knows nothing, in place.

    No layer reads them, and a detector's boxes in pixels and its scores would share one scale.
    """
    for node in tail(graph):
        module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        if is_addition(node) or node.target in _JOINS or isinstance(module, _ACTIVATIONS):
            _isolate(graph, node, "behind the last layers, where one scale for all values could lose much")


def _isolate(graph: GraphModule, node: Node, reason: str) -> None:
    name = f"{node.name}_plain"
    module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
    graph.add_module(name, PlainCall(node, reason) if module is None else PlainModule(module, reason))
    with graph.graph.inserting_before(node):
        called = graph.graph.call_module(name, node.args, node.kwargs)
    called.meta.update(node.meta)
    node.replace_all_uses_with(called)
    graph.graph.erase_node(node)


def quantize_joins(graph: GraphModule, quantizer: Quantizer) -> None:
    """Pass: give each input of an addition or concatenation a quantizer, in place; call it before they are isolated."""
    kind, arguments = quantizer
    for node in list(graph.graph.nodes):
        if not (is_addition(node) or node.target is torch.cat) or len(node.all_input_nodes) < 2:  # noqa: PLR2004
            continue
        for index, source in enumerate(node.all_input_nodes):
            name = f"{node.name}_quant_{index}"
            graph.add_module(name, kind(**arguments).eval())
            with graph.graph.inserting_before(node):
                quantized = graph.graph.call_module(name, (source,))
            node.replace_input_with(source, quantized)
