"""The settings of the ONNX Runtime calibrator. Imports neither torch nor the framework."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from dfq_plugins.types import setting

Method = Literal["minmax", "entropy", "percentile", "distribution"]
ActivationType = Literal["auto", "int8", "uint8"]
ReducedRange = bool | Literal["auto"]


@dataclass(frozen=True)
class OnnxRuntimeOptions:
    """How ONNX Runtime chooses ranges and number formats.

    Args:
        method: the framework's calibration method for activations.
        percentile: percentage of the values that lie inside the range; only for `method="percentile"`.
        bins: bins of the first histogram of a tensor, for the methods with histograms. None takes 2,048, and 256 for
            entropy, whose search takes time; its own 128 leave it a single range to choose.
        moving_average: average the ranges of the samples, instead of covering all of them; only for `method="minmax"`.
        averaging_constant: weight of a new sample in that average.
        activations: signed or unsigned integers for activations. They have the same accuracy; `auto` takes those that
            ONNX Runtime's kernels compute faster with: unsigned on x86 processors, unless `symmetric` is set.
        symmetric: ranges of activations around 0, with the zero point in the middle, as TensorRT requires.
        per_channel: one weight scale per output channel instead of one for the whole tensor.
        reduce_range: 7-bit weights at w8a8. `auto` does so on x86 processors without VNNI, whose kernels add pairs of
            8-bit products in 16 bits and clip larger sums.
        output_margin: factor by which the ranges of the network's outputs are widened: synthetic inputs call for
            smaller logits than real ones.
        operators: ONNX operators to quantize, such as "Conv"; all that the framework knows if empty.
        float_nodes: modules, nodes of the graph, or patterns such as `head.*` to keep in float.
    """

    method: Method = setting("minmax", "calibration method: minmax, entropy, percentile or distribution")
    percentile: Annotated[float, Gt(0), Le(100)] = setting(
        99.999, "percentage of values inside the range, for the percentile method"
    )
    bins: Annotated[int, Ge(128)] | None = setting(None, "bins of a histogram; by default 2048, and 256 for entropy")
    moving_average: bool = setting(default=False, text="minmax: average the ranges of the samples")
    averaging_constant: Annotated[float, Gt(0), Le(1)] = setting(0.01, "weight of a new sample in the moving average")
    activations: ActivationType = setting("auto", "integers for activations: int8, uint8, or auto (uint8 on x86)")
    symmetric: bool = setting(default=False, text="ranges of activations around 0, as TensorRT requires")
    per_channel: bool = setting(default=True, text="one weight scale per output channel")
    reduce_range: ReducedRange = setting("auto", "7-bit weights at w8a8: true, false, or auto (x86 without VNNI)")
    output_margin: Annotated[float, Ge(1)] = setting(2.0, "factor by which the ranges of the outputs are widened")
    operators: tuple[str, ...] = setting((), "operators to quantize, e.g. Conv,MatMul; all by default")
    float_nodes: tuple[str, ...] = setting((), "modules or nodes to keep in float, also patterns such as head.*")
