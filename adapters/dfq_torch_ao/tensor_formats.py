"""Runs a converted graph once to find which of its tensors are quantized."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import GraphModule, Interpreter, Node

from dfq_plugins.inputs import blank_inputs
from dfq_plugins.network.graph_inputs import ordered

if TYPE_CHECKING:
    from dfq_plugins.types import Specification


@dataclass(frozen=True)
class TensorFormat:
    """Number format of a tensor; scale and zero point are None for floating point."""

    dtype: torch.dtype
    scale: float | None = None
    zero_point: int | None = None

    @property
    def quantized(self) -> bool:
        """Whether the tensor holds integers with a scale."""
        return self.scale is not None

    def value_range(self, highest: int) -> tuple[float, float] | None:
        """Return the values of the integers 0 and `highest`; None for floating point.

        >>> TensorFormat(torch.quint8, 0.5, 2).value_range(15)
        (-1.0, 6.5)
        """
        if self.scale is None or self.zero_point is None:
            return None
        return -self.zero_point * self.scale, (highest - self.zero_point) * self.scale


class _FormatRecorder(Interpreter):
    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self.formats: dict[Node, TensorFormat] = {}

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            self.formats[n] = _format_of(result)
        return result


def _format_of(tensor: torch.Tensor) -> TensorFormat:
    if not tensor.is_quantized or tensor.qscheme() != torch.per_tensor_affine:
        return TensorFormat(tensor.dtype)
    return TensorFormat(tensor.dtype, tensor.q_scale(), tensor.q_zero_point())


def record_formats(converted: GraphModule, spec: Specification) -> dict[Node, TensorFormat]:
    """Return the number format of every tensor in `converted`, from a run on one sample of zeros."""
    recorder = _FormatRecorder(converted)
    with torch.no_grad():
        recorder.run(*ordered(blank_inputs(spec, 1)), enable_io_processing=False)
    return recorder.formats


def is_quantized_module(module: torch.nn.Module) -> bool:
    """Return whether a module is one of torch.ao's int8 modules, e.g. `torch.ao.nn.intrinsic.quantized.ConvReLU2d`."""
    path = type(module).__module__
    return path.startswith("torch.ao.nn.") and ".quantized." in path and ".reference." not in path


def is_quantized_operation(node: Node) -> bool:
    """Return whether a node calls one of torch.ao's int8 operations, e.g. `torch.ops.quantized.add_relu`."""
    return node.op == "call_function" and getattr(node.target, "namespace", _namespace(node.target)) == "quantized"


def _namespace(target: object) -> str:
    """Return the namespace of an operator packet, `quantized` in `quantized.add_relu`."""
    return str(getattr(target, "_qualified_op_name", "")).split("::")[0]
