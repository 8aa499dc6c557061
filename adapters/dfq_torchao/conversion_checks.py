"""Checks before and after conversion, each with its own error message."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dfq_plugins.errors import ModelError, UsageError
from dfq_torchao.coverage import quantized_operations
from dfq_torchao.observers import observed_nodes, observer_of
from dfq_torchao.operations import is_computation, short_name

if TYPE_CHECKING:
    from torch.fx import GraphModule


def require_calibrated(prepared: GraphModule) -> None:
    """Refuse to convert while an observer has seen no data; torchao would default to a scale of 1.

    Raises:
        UsageError: an observer has seen no data.
    """
    for node, module in observed_nodes(prepared):
        if _is_empty(observer_of(module)):
            raise UsageError(
                f"Observers must see data before conversion, but {node.name!r} saw none. Call calibrate() first."
            )


def _is_empty(observer: Any) -> bool:
    lowest = getattr(observer, "min_val", None)
    if not isinstance(lowest, torch.Tensor) or getattr(observer, "is_dynamic", False):
        return False
    return lowest.numel() == 0 or bool(torch.isinf(lowest).any())


def require_quantized(converted: GraphModule, quantizer: str) -> None:
    """Reject a model in which nothing was quantized, so that a float model is never passed off as int8.

    Raises:
        ModelError: no operation of the graph reads integers.
    """
    if any(True for _ in quantized_operations(converted)):
        return
    kinds = sorted({short_name(node) for node in converted.graph.nodes if is_computation(node)})
    raise ModelError(
        f"The quantizer {quantizer!r} quantized nothing in this model (it computes: {', '.join(kinds) or 'nothing'}). "
        "Use layers that it knows, such as convolutions and linear layers, or another quantizer."
    )
