"""Keeps operations in float whose int8 kernels are missing, wrong, or ignore a narrower range.

Sigmoid and similar operations always write 256 levels. Averages write the levels of their input: harmless with 256 of
them, but a mean of values on 16 levels uses only a few of them, unless the layer that reads it has a separate
quantizer.

torch.ao lowers dequantize -> operation -> quantize to the int8 kernel even if the operation has no QConfig. An identity
after the operation hides the pattern; it is removed after the conversion.
"""

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.ao.quantization.backend_config import ObservationType, get_native_backend_config

from dfq_torch_ao.observers import observer_of
from dfq_torch_ao.transposed import wrong_transposed_kernel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.fx import GraphModule, Node

FIXED_RANGE_OPERATIONS: tuple[Any, ...] = (
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
)
"""Operations whose int8 kernels always write 256 levels over a known range."""

FLOAT_OPERATIONS: tuple[Any, ...] = (
    *FIXED_RANGE_OPERATIONS,
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


_REASON = "kept_in_float"
"""Key of a node's `meta` for the reason."""

_INSTANCE_NORMS: tuple[Any, ...] = (
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.functional.instance_norm,
)
_INTERPOLATIONS = {
    4: ("nearest", "nearest-exact", "bilinear", "area"),
    5: ("nearest", "nearest-exact", "area"),
    3: ("area",),
}
"""Modes that have an int8 kernel, by number of dimensions."""

_BINARY: tuple[Any, ...] = (operator.add, torch.add, operator.mul, torch.mul)
_JOINS: tuple[Any, ...] = (torch.cat, torch.stack)


def hide_from_lowering(prepared: GraphModule, reasons: Mapping[Node, str]) -> None:
    """Insert an identity after each of these operations, in place, and note the reason."""
    for node, reason in reasons.items():
        if _REASON in node.meta:
            continue
        node.meta[_REASON] = reason
        with prepared.graph.inserting_after(node):
            identity = prepared.graph.call_function(_HIDING, (node,))
        node.replace_all_uses_with(identity, delete_user_cb=functools.partial(operator.is_not, identity))
    prepared.recompile()


def show_again(converted: GraphModule) -> None:
    """Remove the identities again, in place."""
    for node in list(converted.graph.nodes):
        if node.op == "call_function" and node.target is _HIDING and _REASON in node.args[0].meta:
            node.replace_all_uses_with(node.args[0])
            converted.graph.erase_node(node)
    converted.recompile()


def reason_of(node: Node) -> str | None:
    """Return why a node was kept in float, or None if it was not."""
    return node.meta.get(_REASON)


def without_right_kernel(prepared: GraphModule, results: Mapping[Node, Any], engine: str) -> dict[Node, str]:
    """Return the operations that torch.ao would lower to a kernel that is missing or wrong, each with the reason.

    Args:
        prepared: the graph returned by `prepare_fx`.
        results: what its nodes compute, as from `record_results`.
        engine: engine that the weights will be packed for.
    """
    modules = dict(prepared.named_modules(remove_duplicate=False))
    found: dict[Node, str] = {}
    for node in prepared.graph.nodes:
        kind = type(modules[str(node.target)]) if node.op == "call_module" else node.target
        if kind in _INSTANCE_NORMS:
            found[node] = "torch.ao's int8 instance norm ignores running statistics and is wrong on channels-last input"
        elif kind is nn.functional.interpolate and not _has_interpolation(node, results):
            found[node] = "torch.ao has no int8 kernel for this mode of interpolation"
        elif node.target in _BINARY and len(node.all_input_nodes) == 1 and _is_joined(node):
            found[node] = "torch.ao's int8 kernel with a number keeps a scale that the other joined tensors do not have"
        elif node.target in _JOINS and not _shares_one_scale(node, modules):
            found[node] = "torch.ao's int8 kernel needs one scale for all joined tensors, and these have several"
        elif (reason := wrong_transposed_kernel(node, modules.get(str(node.target)), engine)) is not None:
            found[node] = reason
    return found


def _is_joined(node: Node) -> bool:
    """Return whether a concatenation reads the node's values behind their observer."""
    return any(reader.target in _JOINS for observer in node.users for reader in observer.users)


def _shares_one_scale(node: Node, modules: Mapping[str, nn.Module]) -> bool:
    """Return whether all tensors that a node joins were observed by one observer."""
    return len({_observed_by(source, modules) for source in node.all_input_nodes}) == 1


def _observed_by(node: Node, modules: Mapping[str, nn.Module]) -> int:
    """Return the identity of the observer whose scale an int8 tensor has.

    A kernel that only moves values writes the scale of its input, whatever the observer behind it says.
    """
    module = modules.get(str(node.target)) if node.op == "call_module" else None
    source = node.all_input_nodes[0] if node.all_input_nodes else None
    if observer_of(module) is None:
        return id(node) if source is None or not _keeps_scale(node, modules) else _observed_by(source, modules)
    return _observed_by(source, modules) if source is not None and _keeps_scale(source, modules) else id(module)


def _keeps_scale(node: Node, modules: Mapping[str, nn.Module]) -> bool:
    kind: Any = type(modules[str(node.target)]) if node.op == "call_module" else node.target
    return node.op != "placeholder" and kind in _scale_keeping_operations()


@functools.cache
def _scale_keeping_operations() -> frozenset[Any]:
    """Return what torch.ao lists as kernels that write the scale of their input."""
    configs = get_native_backend_config().configs
    shared = ObservationType.OUTPUT_SHARE_OBSERVER_WITH_INPUT
    patterns = [config.pattern for config in configs if config.observation_type is shared]
    return frozenset(pattern for pattern in patterns if not isinstance(pattern, tuple)) - set(_JOINS)


def _has_interpolation(node: Node, results: Mapping[Node, Any]) -> bool:
    mode = node.args[3] if len(node.args) > 3 else node.kwargs.get("mode", "nearest")  # noqa: PLR2004
    smooth = node.args[6] if len(node.args) > 6 else node.kwargs.get("antialias", False)  # noqa: PLR2004
    return not smooth and mode in _INTERPOLATIONS.get(results[node].dim(), ())


def below_eight_bits(prepared: GraphModule) -> dict[Node, str]:
    """Return the calls of `FLOAT_OPERATIONS`, with the reason."""
    modules = dict(prepared.named_modules(remove_duplicate=False))
    reason = "in float below 8 bits: its int8 kernel would not stay within the levels"
    return {node: reason for node in prepared.graph.nodes if calls(node, FLOAT_OPERATIONS, modules)}


def calls(node: Node, operations: tuple[Any, ...], modules: dict[str, nn.Module]) -> bool:
    """Return whether a node calls one of these module classes, functions and methods."""
    if node.op == "call_module":
        return type(modules[str(node.target)]) in operations
    return node.op in ("call_function", "call_method") and node.target in operations
