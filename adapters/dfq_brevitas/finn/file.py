"""Converts an exported QONNX graph to the form that FINN's conversion reads, without changing what it computes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import helper
from qonnx.transformation.extract_conv_bias import ExtractBiasFromConv
from qonnx.transformation.general import GiveReadableTensorNames, GiveUniqueNodeNames, RemoveUnusedTensors
from qonnx.transformation.infer_shapes import InferShapes

if TYPE_CHECKING:
    from qonnx.core.modelwrapper import ModelWrapper

_SPATIAL = 2
_PARAMETERS = (1, 2)  # scale and zero point of a Quant node; its width must stay a scalar


def give_parameters_a_rank(graph: Any) -> None:
    """Reshape the scalar parameters of Quant nodes on constants to (1,), in place.

    A bias becomes `(1, channels, 1, 1)` when FINN moves it out of its convolution. Scalar parameters cannot be reshaped
    along with it; parameters of shape (1,) need not be.

    Args:
        graph: an `onnx.GraphProto` in which each node has its own parameters.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    described = {value.name: value for value in graph.value_info}
    for node in graph.node:
        if node.op_type == "Quant" and node.input[0] in constants:
            for name in (node.input[position] for position in _PARAMETERS):
                if name in constants and len(constants[name].dims) == 0:
                    constants[name].dims.append(1)
                    described[name].type.tensor_type.shape.dim.add().dim_value = 1


def finn_onnx(model: ModelWrapper) -> ModelWrapper:
    """Return the graph with padding moved into its convolutions and biases moved after them.

    FINN pads only in its convolutions. The qonnx version shipped with FINN 0.10 leaves a quantized bias in its
    convolution, and the converted network then computes something else.
    """
    fold_padding(model)
    for step in (ExtractBiasFromConv(), InferShapes(), RemoveUnusedTensors(), GiveUniqueNodeNames()):
        model = model.transform(step)
    return model.transform(GiveReadableTensorNames())


def fold_padding(model: ModelWrapper) -> None:
    """Fold each Pad node that pads with zeros into the convolutions that read it, in place."""
    for pad in [node for node in model.graph.node if node.op_type == "Pad"]:
        amounts = _spatial_zero_padding(model, pad)
        readers = model.find_consumers(pad.output[0])
        if amounts is None or not readers or any(reader.op_type != "Conv" for reader in readers):
            continue
        for reader in readers:
            own = next((attribute for attribute in reader.attribute if attribute.name == "pads"), None)
            before = np.array(own.ints if own is not None else [0] * len(amounts))
            if own is not None:
                reader.attribute.remove(own)
            reader.attribute.append(helper.make_attribute("pads", (before + amounts).tolist()))
            reader.input[0] = pad.input[0]
        model.graph.node.remove(pad)


def _spatial_zero_padding(model: ModelWrapper, pad: Any) -> np.ndarray[Any, Any] | None:
    """Return the padding before and after each spatial axis, or None if the Pad node does anything else."""
    mode = next((attribute.s for attribute in pad.attribute if attribute.name == "mode"), b"constant")
    amounts = model.get_initializer(pad.input[1])
    filling = model.get_initializer(pad.input[2]) if len(pad.input) > _SPATIAL and pad.input[2] else np.zeros(1)
    if mode != b"constant" or amounts is None or filling is None or np.any(filling):
        return None
    front, back = np.split(amounts, 2)
    spatial = np.concatenate([front[_SPATIAL:], back[_SPATIAL:]])
    return spatial if not (front[:_SPATIAL].any() or back[:_SPATIAL].any()) and np.all(spatial >= 0) else None
