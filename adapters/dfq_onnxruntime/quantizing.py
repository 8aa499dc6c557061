"""Drives ONNX Runtime's `QDQQuantizer` with calibrated ranges, as its `quantize_static` does."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnxruntime.quantization.calibrate import TensorData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from dfq_onnxruntime.coverage import DEQUANTIZE
from dfq_onnxruntime.float_nodes import named_float_nodes, nodes_touching, output_tensors
from dfq_onnxruntime.float_program import only_used_domains
from dfq_onnxruntime.formats import types_for
from dfq_onnxruntime.framework import quiet_tools
from dfq_plugins.errors import ModelError, UsageError, nearest
from dfq_plugins.quantization.onnx_graph import SHAPE_ONLY

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from onnxruntime.quantization.calibrate import TensorsData

    from dfq_onnxruntime.options import OnnxRuntimeOptions
    from dfq_plugins.types import InputSpec, Recipe

KNOWN_OPERATORS = tuple(sorted({*QDQRegistry, *QLinearOpsRegistry}))
"""Operators that ONNX Runtime quantizes by default."""

_UNLIMITED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Add"})


def operators_for(options: OnnxRuntimeOptions) -> tuple[str, ...]:
    """Return the operators to quantize.

    Raises:
        UsageError: ONNX Runtime does not quantize one of those that the user named.
    """
    for name in options.operators:
        if name not in KNOWN_OPERATORS:
            raise UsageError(
                f"ONNX Runtime does not quantize the operator {name!r}.{nearest(name, KNOWN_OPERATORS)} It knows "
                f"{', '.join(KNOWN_OPERATORS)}."
            )
    return options.operators or KNOWN_OPERATORS


def quantized_program(
    program: bytes,
    ranges: TensorsData,
    infinite: Collection[str],
    inputs: Mapping[str, InputSpec],
    recipe: Recipe,
    options: OnnxRuntimeOptions,
    *,
    reduce_range: bool,
) -> bytes:
    """Return a program with QuantizeLinear and DequantizeLinear around every operator that ONNX Runtime quantizes.

    Args:
        program: the float program.
        ranges: the calibrated range of each activation; not changed.
        infinite: activations that are not finite; the nodes around them stay in float.
        inputs: the specification of each input by its name in the program.
        recipe: bit widths.
        options: the user's settings.
        reduce_range: whether 8-bit weights have 7 bits.

    Raises:
        ModelError: nothing is quantized.
    """
    model, ranges = onnx.load_from_string(program), copy.deepcopy(ranges)
    ranges.data = {name: found for name, found in ranges.data.items() if name not in infinite}
    _widen_outputs(ranges, model.graph, options.output_margin)
    left_out = [*named_float_nodes(model.graph, options.float_nodes), *nodes_touching(model.graph, infinite)]
    activation, weight = types_for(recipe, options)
    # Without them, a range that reaches below 0 behind a ReLU would let negative values through.
    keep_relu = options.symmetric or options.method == "distribution"
    settings = {
        "ActivationSymmetric": options.symmetric,
        "QDQKeepRemovableActivations": keep_relu,
        "TensorQuantOverrides": _input_ranges(inputs, activation, ranges),
    }
    with quiet_tools(), tempfile.TemporaryDirectory() as folder:
        quantizer = QDQQuantizer(
            model,
            options.per_channel,
            reduce_range,
            weight,
            activation,
            ranges,
            [],
            left_out,
            list(operators_for(options)),
            settings,
        )
        quantizer.quantize_model()
        path = Path(folder) / "quantized.onnx"
        quantizer.model.save_model_to_file(str(path))
        found = only_used_domains(onnx.load(path))
    _require_quantized(found.graph)
    return found.SerializeToString()  # type: ignore[no-any-return]


def _require_quantized(graph: Any) -> None:
    kinds = {node.op_type for node in graph.node}
    if DEQUANTIZE not in kinds:
        raise ModelError(
            f"ONNX Runtime quantizes none of the operators of this network: {', '.join(sorted(kinds))}. Build it from "
            "layers such as convolutions and linear layers, or leave fewer nodes in float."
        )


def _input_ranges(inputs: Mapping[str, InputSpec], kind: Any, ranges: TensorsData) -> dict[str, list[dict[str, Any]]]:
    """Give the quantizer of each input the range that is known, whatever the data hold."""
    return {
        name: [{"quant_type": kind, **dict(zip(("rmin", "rmax"), map(_number, spec.input_range), strict=True))}]
        for name, spec in inputs.items()
        if spec.input_range is not None and name in ranges
    }


def _number(value: float) -> Any:
    return np.array(value, dtype=np.float32)


def _widen_outputs(ranges: TensorsData, graph: Any, factor: float) -> None:
    """Multiply the ranges of the network's outputs, unless an operator such as Softmax limits them, in place."""
    for name in output_tensors(graph, _UNLIMITED, SHAPE_ONLY):
        if name in ranges:
            low, high = (np.asarray(end * np.float32(factor), dtype=np.float32) for end in ranges[name].range_value)
            ranges[name] = TensorData(lowest=low, highest=high)
