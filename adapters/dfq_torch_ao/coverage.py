"""Reports which layers of a converted model compute in integers, and why the others do not."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from dfq_plugins.types import Coverage, NumberFormat, QuantizedTensor
from dfq_torch_ao.float_operations import reason_of
from dfq_torch_ao.input_range import moves_values
from dfq_torch_ao.qconfig import STORAGE_BITS, weight_range
from dfq_torch_ao.saturation import SATURATION_PREFIX
from dfq_torch_ao.tensor_formats import is_quantized_module

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import nn
    from torch.fx import GraphModule, Node

    from dfq_torch_ao.run import Run
    from dfq_torch_ao.tensor_formats import TensorFormat


def describe_coverage(converted: GraphModule, formats: Mapping[Node, TensorFormat], run: Run) -> Coverage:
    """List the layers that read integers, and those that read floating point, with the reason.

    Args:
        converted: the graph returned by `convert_fx`.
        formats: number formats of its tensors.
        run: the settings used to convert it.
    """
    modules = dict(converted.named_modules(remove_duplicate=False))
    quantized: list[QuantizedTensor] = []
    floating: list[tuple[str, str]] = []
    for node in filter(_is_operation, formats):
        inputs = [formats[argument] for argument in node.all_input_nodes if argument in formats]
        if any(form.quantized for form in inputs):
            quantized += _quantized_tensors(node, inputs, modules, run)
        else:
            floating.append((_name(node), _float_reason(node, modules, run)))
    return Coverage(tuple(quantized), tuple(floating))


def _is_operation(node: Node) -> bool:
    """Return whether a node computes something: it is neither an input nor a change of number format."""
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


def _quantized_tensors(
    node: Node, inputs: Sequence[TensorFormat], modules: dict[str, nn.Module], run: Run
) -> Iterator[QuantizedTensor]:
    name, kind = _name(node), _kind(node, modules)
    if node.op == "call_module":
        weight = _weight_format(getattr(modules[str(node.target)], "weight", None), run.recipe.weight_bits)
        if weight is not None:
            yield QuantizedTensor(name, kind, "weight", weight)
    yield QuantizedTensor(name, kind, "input", _activation_format(inputs, run.highest_activation))


def _weight_format(weight: Any, bits: int) -> NumberFormat | None:
    """Return the format of a module's `weight`, which is a method if it is packed; None for a float tensor."""
    if not callable(weight):
        return None
    packed = weight()
    per_channel = packed.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric)
    form = NumberFormat(bits, signed=True, symmetric=True, per_channel=per_channel, stored_bits=STORAGE_BITS)
    if per_channel:
        return form
    lowest, highest = weight_range(bits)
    return replace(form, range=(lowest * packed.q_scale(), highest * packed.q_scale()))


def _activation_format(inputs: Sequence[TensorFormat], highest: int) -> NumberFormat:
    """Return the format of an operation's inputs, with the range if they all share it."""
    ranges = {form.value_range(highest) for form in inputs if form.quantized}
    return NumberFormat(
        highest.bit_length(),
        signed=False,
        symmetric=False,
        per_channel=False,
        stored_bits=STORAGE_BITS,
        range=ranges.pop() if len(ranges) == 1 else None,
    )


def _float_reason(node: Node, modules: dict[str, nn.Module], run: Run) -> str:
    if node.op == "call_module" and node.target in run.non_traceable:
        return "left out by the option non_traceable"
    if moves_values(node, modules):
        return "only moves values, in float, next to quantized layers"
    if (reason := reason_of(node)) is not None:
        return reason
    return f"torch.ao has no int8 kernel for {_kind(node, modules)} in this place"
