"""The settings that the calibrators of NVIDIA's two frameworks share. Imports neither torch nor a framework."""

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
class RangeOptions:
    """How ranges are chosen; every range is symmetric, `[-amax, amax]`, or `[0, amax]` if unsigned.

    Args:
        activations: the framework's calibration method for the inputs of layers.
        percentile: percentage of absolute activations that lie inside the range; only for `activations="percentile"`.
        weights: the framework's calibration method for weights. Its mse takes tens of milliseconds per channel.
        per_channel: one weight range per output channel instead of one for the whole tensor.
        unsigned: whether inputs that were never negative in calibration are quantized to unsigned integers; `auto` does
            so only below 8 bits, because TensorRT supports only signed 8-bit integers.
        input_bits: bit width of the quantizers on the network input, 2 to 8.
        pooling: whether the inputs of average pooling modules are also quantized, as the framework does.
        learned_ranges: whether fine-tuning learns activation ranges, by clipping to trained limits.
        residual_quantizer: whether the shortcut of an addition to a convolution's output is quantized, to 8 bits with
            any recipe: TensorRT then adds it inside the int8 convolution.
        batch_size: size of the batch axis in the ONNX file; None keeps it dynamic.
        dynamic_sizes: whether the spatial axes of the inputs are also dynamic in the ONNX file.
        training_weights: in fine-tuning, keep the calibrated weight ranges, or let them follow the largest weights.
    """

    activations: ActivationMethod = setting(
        "mse", "calibration method for activations: max, entropy, percentile or mse"
    )
    percentile: Annotated[float, Gt(0), Le(100)] = setting(
        99.99, "percentage of activations inside the range, for the percentile method"
    )
    weights: WeightMethod = setting("max", "calibration method for weights: max or mse")
    per_channel: bool = setting(default=True, text="one weight range per output channel")
    unsigned: Unsigned = setting(
        "auto", "unsigned integers for inputs that are never negative: true, false, or auto (only below 8 bits)"
    )
    input_bits: Annotated[int, Ge(2), Le(8)] = setting(8, "bits of the network input")
    pooling: bool = setting(default=True, text="quantize the inputs of average pooling modules")
    residual_quantizer: bool = setting(
        default=True, text="quantize the shortcuts of residual additions, which TensorRT then fuses in int8"
    )
    batch_size: Annotated[int, Ge(1)] | None = setting(None, "fixed batch size of the ONNX file; any size by default")
    dynamic_sizes: bool = setting(default=False, text="leave the sizes of the inputs open in the ONNX file")
    learned_ranges: bool = setting(default=False, text="in training, learn activation ranges")
    training_weights: TrainingWeights = setting(
        "fixed", "in training, weight ranges: fixed, or follow the largest weights"
    )
