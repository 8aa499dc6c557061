"""Marks each quantizer in the traced graph, so that the ONNX file names its pairs after the layers of the network."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from dfq_shared.tensorrt.qdq_graph import MARKER_DOMAIN, MARKER_OPERATOR, IntegerFormat
from dfq_shared.tensorrt.quantizers import is_active, is_quantizer

WEIGHT_SUFFIX = "weight_quantizer"


def marked_copy(model: nn.Module) -> nn.Module:
    """Return a copy on the CPU in which each active quantizer is a marker, which torch.onnx writes as one node.

    The others are identities: ModelOpt's read the size of what passes them, which tracing warns of.

    The exporter's fake quantization is not used: it supports only 8 bits, turns unsigned levels into uint8, and drops
    the names of the layers.

    Args:
        model: calibrated model.
    """
    copied = copy.deepcopy(model).cpu().eval()
    markers: dict[int, nn.Module] = {
        id(quantizer): _Marker(name) for name, quantizer in active_quantizers(copied).items()
    }
    for parent in list(copied.modules()):
        for name, child in list(parent._modules.items()):  # noqa: SLF001  (named_children() hides a child's second name)
            if child is not None and is_quantizer(child):
                parent._modules[name] = markers.get(id(child), _Marker(None))  # noqa: SLF001  (as above)
    return copied


def active_quantizers(model: nn.Module) -> dict[str, Any]:
    """Return the framework's quantizers that are switched on, in order, e.g. under `"conv.input_quantizer"`."""
    return {
        quantizer_name(path): module
        for path, module in model.named_modules()
        if is_quantizer(module) and is_active(module) and module._if_quant  # noqa: SLF001  (no public access)
    }


def quantizer_name(path: str) -> str:
    """Return the public name of a quantizer, which pytorch-quantization stores in a private attribute with a property.

    >>> quantizer_name("layer1.0.conv1._input_quantizer")
    'layer1.0.conv1.input_quantizer'
    """
    owner, _, attribute = path.rpartition(".")
    return f"{owner}.{attribute.removeprefix('_')}".removeprefix(".")


def integer_format(quantizer: Any) -> IntegerFormat:
    """Return the step and the levels of a calibrated quantizer of the framework."""
    highest = 2 ** (quantizer.num_bits - 1 + int(quantizer.unsigned)) - 1
    lowest = 0 if quantizer.unsigned else -highest - (not quantizer.narrow_range)
    step = quantizer.amax.detach().cpu().float() / highest
    per_channel = quantizer.axis is not None and step.numel() > 1
    axis = next((index for index, size in enumerate(step.shape) if size > 1), None) if per_channel else None
    return IntegerFormat(step.flatten().numpy() if per_channel else step.reshape(()).numpy(), axis, lowest, highest)


@torch.no_grad()
def quantized_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the fake-quantized weight of each layer, by the name of its quantizer.

    Every engine rounds these values to the same integers as torch: no value lies near a rounding boundary.
    """
    return {
        name: quantizer(_owner(model, name).weight.detach()).cpu()
        for name, quantizer in active_quantizers(model).items()
        if is_weight(name)
    }


def is_weight(name: str) -> bool:
    """Return whether `name` is the name of a weight quantizer."""
    return name.rpartition(".")[2] == WEIGHT_SUFFIX


def _owner(model: nn.Module, name: str) -> Any:
    return model.get_submodule(name.rpartition(".")[0])


class _Marker(nn.Module):
    """Marks one quantizer, or nothing, without a name; computes the identity."""

    num_bits = None
    """ModelOpt's Conv3d asks its quantizers for their width."""

    def __init__(self, name: str | None) -> None:
        super().__init__()
        self.name = name

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.name is None:
            return inputs
        marked: torch.Tensor = _Mark.apply(inputs, self.name)
        return marked


class _Mark(torch.autograd.Function):
    @staticmethod
    def forward(_context: Any, inputs: torch.Tensor, _name: str) -> torch.Tensor:
        return inputs.clone()

    @staticmethod
    def symbolic(graph: Any, inputs: Any, name: str) -> Any:
        """Write the node of this function; called by torch.onnx."""
        return graph.op(f"{MARKER_DOMAIN}::{MARKER_OPERATOR}", inputs, name_s=name).setType(inputs.type())
