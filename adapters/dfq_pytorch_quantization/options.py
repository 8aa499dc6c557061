"""The settings of the pytorch-quantization calibrator. Imports neither torch nor the framework."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from dfq_plugins.types import setting

ActivationMethod = Literal["max", "entropy", "percentile", "mse"]
WeightMethod = Literal["max", "mse"]
Unsigned = bool | Literal["auto"]
TrainingWeights = Literal["fixed", "follow"]


@dataclass(frozen=True)
class PytorchQuantizationOptions:
    """How ranges are chosen; every range is symmetric, `[-amax, amax]`, or `[0, amax]` where unsigned.

    Args:
        activations: the framework's calibration method for the inputs of layers.
        percentile: percentage of absolute activations that lie inside the range; for `activations="percentile"` alone.
        weights: the framework's calibration method for weights. Its mse takes tens of milliseconds a channel.
        per_channel: one weight range for each output channel rather than for the whole tensor.
        unsigned: whether inputs that calibration never saw negative are quantized to unsigned integers; `auto` does so
            below 8 bits alone, because TensorRT takes signed 8-bit integers only.
        input_bits: width of the quantizers on the network input, 2 to 8.
        pooling: whether the inputs of average pooling modules are quantized too, as the framework does.
        learned_ranges: whether fine-tuning learns the ranges of activations, by the framework's own clipping.
        residual_quantizer: whether the shortcut of an addition onto a convolution's output is quantized, to 8 bits at
            any recipe: TensorRT then adds it inside the int8 convolution.
        batch_size: size of the batch axis in the ONNX file; None keeps it dynamic.
        training_weights: in fine-tuning, keep the calibrated weight ranges, or let them follow the largest weights.
    """

    activations: ActivationMethod = setting(
        "mse", "calibration method for activations: max, entropy, percentile or mse"
    )
    percentile: Annotated[float, Gt(0), Le(100)] = setting(
        99.99, "percentage of activations inside the range, for the percentile method"
    )
    weights: WeightMethod = setting("max", "calibration method for weights: max or mse")
    per_channel: bool = setting(default=True, text="one weight range for each output channel")
    unsigned: Unsigned = setting(
        "auto", "unsigned integers for inputs never negative: true, false, or auto (below 8 bits)"
    )
    input_bits: Annotated[int, Ge(2), Le(8)] = setting(8, "bits of the network input")
    pooling: bool = setting(default=True, text="quantize the inputs of average pooling modules")
    residual_quantizer: bool = setting(
        default=True, text="quantize the shortcuts of residual additions, which TensorRT then fuses in int8"
    )
    batch_size: Annotated[int, Ge(1)] | None = setting(None, "fixed batch size of the ONNX file; any size by default")
    learned_ranges: bool = setting(default=False, text="in training, learn the ranges of activations")
    training_weights: TrainingWeights = setting(
        "fixed", "in training, weight ranges: fixed, or follow the largest weights"
    )
