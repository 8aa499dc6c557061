"""Says which layers of a converted model compute in integers, and why the others do not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dfq_plugins.types import Coverage, QuantizedLayer
from dfq_torch_ao.float_operations import stays_float
from dfq_torch_ao.input_range import moves_values
from dfq_torch_ao.qconfig import STORAGE_BITS
from dfq_torch_ao.saturation import SATURATION_PREFIX
from dfq_torch_ao.tensor_formats import is_quantized_module

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn
    from torch.fx import GraphModule, Node

    from dfq_torch_ao.run import Run
    from dfq_torch_ao.tensor_formats import TensorFormat


def describe_coverage(converted: GraphModule, formats: Mapping[Node, TensorFormat], run: Run) -> Coverage:
    """List the layers that read integers, and those that read floating point with the reason.

    Args:
        converted: the graph that `convert_fx` returned.
        formats: number formats of its tensors.
        run: the settings that it was converted with.
    """
    modules = dict(converted.named_modules(remove_duplicate=False))
    quantized, floating = [], []
    for node in filter(_is_operation, formats):
        inputs = [formats[argument] for argument in node.all_input_nodes if argument in formats]
        if any(form.quantized for form in inputs):
            quantized.append(_quantized_layer(node, modules, run))
        else:
            floating.append((_name(node), _float_reason(node, modules, run)))
    return Coverage(tuple(quantized), tuple(floating))


def _is_operation(node: Node) -> bool:
    """Tell whether a node computes something: neither an input nor a change of number format."""
    if node.op not in ("call_module", "call_function", "call_method") or node.name.startswith(SATURATION_PREFIX):
        return False
    return node.target not in (torch.quantize_per_tensor, torch.dequantize, "dequantize")


def _name(node: Node) -> str:
    return str(node.target) if node.op == "call_module" else node.name


def _kind(node: Node, modules: dict[str, nn.Module]) -> str:
    if node.op == "call_module":
        module = modules[str(node.target)]
        return ("quantized." if is_quantized_module(module) else "") + type(module).__name__
    return str(node.target) if isinstance(node.target, str) else str(getattr(node.target, "__name__", node.target))


def _quantized_layer(node: Node, modules: dict[str, nn.Module], run: Run) -> QuantizedLayer:
    weight: str | None = "no weight"
    if node.op == "call_module":
        weight = _weight_format(getattr(modules[str(node.target)], "weight", None), run.recipe.weight_bits)
    activation = f"{_stored('uint', run.highest_activation.bit_length())} per tensor"
    return QuantizedLayer(_name(node), _kind(node, modules), weight, activation)


def _weight_format(weight: Any, bits: int) -> str | None:
    """Say the format of what a module keeps as `weight`: a method where it is packed, a tensor where it is float."""
    if weight is None:
        return "no weight"
    if not callable(weight):
        return None
    packed = weight()
    per_channel = packed.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric)
    return f"{_stored('int', bits)} per {'channel' if per_channel else 'tensor'}, symmetric"


def _stored(kind: str, bits: int) -> str:
    """Return the name of an integer format.

    >>> _stored("int", 8), _stored("uint", 4)
    ('int8', 'uint4 in uint8')
    """
    return f"{kind}8" if bits == STORAGE_BITS else f"{kind}{bits} in {kind}8"


def _float_reason(node: Node, modules: dict[str, nn.Module], run: Run) -> str:
    if node.op == "call_module" and node.target in run.non_traceable:
        return "left out by the option non_traceable"
    if moves_values(node, modules):
        return "only moves values, in float, next to quantized layers"
    if run.recipe.activation_bits < STORAGE_BITS and stays_float(node, modules):
        return "in float below 8 bits: its int8 kernel would not keep to the levels"
    return f"torch.ao has no int8 kernel for {_kind(node, modules)} in this place"
