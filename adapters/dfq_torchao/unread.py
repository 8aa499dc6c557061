"""Removes the float tensors that a converted graph does not read any more."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn
    from torch.fx import GraphModule


def drop_unread_tensors(converted: GraphModule) -> None:
    """Delete, in place, every parameter, buffer and submodule that no node reads: int8 weights replaced them."""
    converted.graph.eliminate_dead_code()
    read = {str(node.target) for node in converted.graph.nodes if node.op == "get_attr"}
    for name, module in list(converted.named_modules()):
        prefix = f"{name}." if name else ""
        for own in [*module._parameters, *module._buffers]:  # noqa: SLF001  names of this module only
            if prefix + own not in read:
                delattr(module, own)
    called = {str(node.target) for node in converted.graph.nodes if node.op == "call_module"}
    _drop_empty(converted, "", called)
    converted.recompile()


def _drop_empty(module: nn.Module, prefix: str, called: set[str]) -> None:
    for name, child in list(module.named_children()):
        path = f"{prefix}{name}"
        _drop_empty(child, f"{path}.", called)
        holds = any(True for _ in child.parameters()) or any(True for _ in child.buffers())
        if path not in called and not holds:
            delattr(module, name)
