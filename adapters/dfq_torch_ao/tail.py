"""Keeps what joins and scales values behind the last layers in float: torch.ao would give all of it one scale."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dfq_plugins.network.tracing.tail import tail
from dfq_torch_ao.float_operations import FIXED_RANGE_OPERATIONS, calls

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

_JOINING = frozenset(
    (torch.cat, torch.stack, operator.add, torch.add, operator.mul, torch.mul, operator.sub, torch.sub)
)
_SUFFIX = "_in_float"
_REASON = "behind the last layers, where integers gain nothing and one scale for all values could lose much"


class FloatCall(nn.Module):
    """Calls a function that torch.ao is not to recognize."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self.function(*args, **kwargs)


def hide_tail(graph: GraphModule) -> None:
    """Turn the functions behind the last layers that join or scale values into modules, in place."""
    for node in [node for node in tail(graph) if node.op == "call_function" and node.target in _JOINING]:
        name = node.name + _SUFFIX
        graph.add_submodule(name, FloatCall(node.target))
        node.op, node.target = "call_module", name
    graph.recompile()


def show_tail(prepared: GraphModule) -> dict[Node, str]:
    """Turn the modules back into functions, in place, once observers are inserted.

    Returns:
        What stays in float behind the last layers, with the reason: these, and the operations whose int8 kernels have a
        fixed range, such as a sigmoid.
    """
    modules = dict(prepared.named_modules(remove_duplicate=False))
    found: dict[Node, str] = {}
    for node in tail(prepared):
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, FloatCall):
            node.op, node.target = "call_function", module.function
            node._rename(node.name.removesuffix(_SUFFIX))  # noqa: SLF001  torch has no public way to rename a node
            found[node] = _REASON
        elif calls(node, FIXED_RANGE_OPERATIONS, modules):
            found[node] = _REASON
    prepared.delete_all_unused_submodules()
    prepared.recompile()
    return found
