"""Checks before and after conversion, each with its own error message."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dfq_plugins.errors import ModelError, UsageError
from dfq_torch_ao.observers import observer_of
from dfq_torch_ao.tensor_formats import is_quantized_module, is_quantized_operation

if TYPE_CHECKING:
    from torch import nn
    from torch.fx import GraphModule


def require_calibrated(prepared: GraphModule) -> None:
    """Refuse to convert while an observer has seen no data; torch.ao would default to a scale of 1.

    Raises:
        UsageError: an observer has seen no data.
    """
    modules = dict(prepared.named_modules(remove_duplicate=False))
    for node in prepared.graph.nodes:
        if node.op == "call_module" and _is_empty(modules[str(node.target)]):
            raise UsageError(
                f"Observers must see data before conversion, but {str(node.target)!r} saw none. Call calibrate() first."
            )


def _is_empty(module: nn.Module) -> bool:
    lowest = getattr(observer_of(module), "min_val", None)
    if not isinstance(lowest, torch.Tensor):
        return False
    return lowest.numel() == 0 or bool(torch.isinf(lowest).any())


def require_quantized(converted: GraphModule) -> None:
    """Reject a model in which torch.ao quantized nothing, so that a float model is never passed off as int8.

    Raises:
        ModelError: the graph has no int8 module and no int8 operation.
    """
    if any(map(is_quantized_module, converted.modules())) or any(map(is_quantized_operation, converted.graph.nodes)):
        return
    calls = [node for node in converted.graph.nodes if node.op.startswith("call_")]
    kinds = sorted(
        {type(converted.get_submodule(n.target)).__name__ if n.op == "call_module" else n.name for n in calls}
    )
    raise ModelError(
        f"torch.ao quantized no layer of this model (it computes: {', '.join(kinds) or 'nothing'}). "
        "Use layers that it has int8 kernels for, such as convolutions, linear layers and additions."
    )
