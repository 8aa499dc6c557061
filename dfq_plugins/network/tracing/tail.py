"""The operations behind the last layers: what only the outputs read."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

_LAYERS: tuple[type[nn.Module], ...] = (
    nn.modules.conv._ConvNd,  # noqa: SLF001  torch has no public name for all of them
    nn.Linear,
    nn.Bilinear,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
)
_PRODUCTS = frozenset(
    (
        functional.linear,
        functional.bilinear,
        functional.scaled_dot_product_attention,
        *(getattr(functional, f"conv{kind}{axes}d") for kind in ("", "_transpose") for axes in (1, 2, 3)),
        operator.matmul,
        torch.matmul,
        torch.mm,
        torch.bmm,
        torch.baddbmm,
        torch.addmm,
        torch.einsum,
        "matmul",
        "mm",
        "bmm",
    )
)


def tail(graph: GraphModule) -> list[Node]:
    """Return the operations of a graph from which no layer with weights and no matrix product can be reached, in order.

    There are no integer products behind them, so low-precision arithmetic gains nothing there. But it may lose all: a
    detector's boxes in pixels and its scores between 0 and 1 are joined into one tensor at the end. A graph without
    layers and products has no tail.

    >>> graph = torch.fx.symbolic_trace(nn.Sequential(nn.ReLU(), nn.Linear(2, 2), nn.Sigmoid()))
    >>> [node.name for node in tail(graph)]
    ['_2']
    """
    products = {node for node in graph.graph.nodes if _is_product(graph, node)}
    leads: dict[Node, bool] = {}
    for node in reversed(graph.graph.nodes):
        leads[node] = node in products or any(leads[reader] for reader in node.users)
    operations = ("call_module", "call_function", "call_method")
    return [node for node in graph.graph.nodes if products and node.op in operations and not leads[node]]


def _is_product(graph: GraphModule, node: Node) -> bool:
    if node.op == "call_module":
        module: Any = graph.get_submodule(str(node.target))
        return any(isinstance(part, _LAYERS) for part in module.modules())
    return node.op in ("call_function", "call_method") and node.target in _PRODUCTS
