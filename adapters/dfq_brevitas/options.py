"""The settings of the Brevitas calibrator. Imports neither torch nor the framework."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from dfq_plugins.types import setting

WeightScale = Literal["mse", "max"]
ActivationScale = Literal["mse", "percentile", "max"]
FirstAndLast = Literal["quantized", "float"]
BiasCorrection = Literal["network", "layer", "none"]
Target = Literal["generic", "finn"]

_PERCENTILES = ((4, 99.75), (6, 99.9))
_WIDE_PERCENTILE = 100.0
_SEARCHED_BITS = 4
_HALF_STRENGTH_LAYERS = 60


@dataclass(frozen=True)
class BrevitasOptions:
    """How Brevitas finds the scales of weights and activations, and what is corrected before and after.

    The defaults performed best on a CIFAR-10 ResNet-20, see docs/how-to/brevitas.md.
    """

    target: Target = setting(
        "generic",
        "what the QONNX file is for: finn uses only operators and quantizers that FINN can convert, and "
        "checks the file against FINN's rules",
    )
    power_of_two_scales: bool = setting(
        default=False,
        text="round the scales of weights and activations up to powers of two, so that rescaling is a shift",
    )
    weight_scale: WeightScale = setting(
        "max", "weight scales from the largest weight (max) or by minimizing the squared error (mse)"
    )
    per_channel: bool = setting(default=True, text="one weight scale per output channel instead of one per tensor")
    narrow_range: bool = setting(
        default=True, text="drop the lowest weight integer, e.g. -7..7 instead of -8..7 at 4 bits"
    )
    activation_scale: ActivationScale | None = setting(
        None,
        "activation scales from a percentile, by minimizing the squared error (mse), or from the largest "
        "value (max); not set: mse up to 4 bits, percentile above",
    )
    percentile: Annotated[float, Gt(0), Le(100)] | None = setting(
        None,
        "percentage of absolute activations inside the range, for the percentile scale; not set: 99.75 "
        "up to 4 bits, 99.9 up to 6 bits, 100 above",
    )
    first_and_last: FirstAndLast | None = setting(
        None, "weights of the first and the last layer; not set: float with binary weights, otherwise quantized"
    )
    mse_candidates: Annotated[int, Ge(3), Le(1000)] = setting(20, "number of scales that the mse search tries")
    dynamic_sizes: bool = setting(
        default=False, text="leave the sizes of the inputs open in the QCDQ file; a QONNX file has fixed sizes"
    )
    input_bits: Annotated[int, Ge(2), Le(8)] = setting(8, "bits of the network input, if activations are quantized")
    addition_bits: Annotated[int, Ge(2), Le(16)] = setting(
        8, "bits of both inputs of every addition, including shortcuts, if activations are quantized"
    )
    known_input_range: bool = setting(
        default=True, text="take the input quantizer's range from the input specification, if it defines one"
    )
    merge_batch_norm: bool | None = setting(
        None,
        "fold BatchNorm into the layer before it; not set: yes, except in training with binary weights, "
        "which need its statistics re-estimated",
    )
    equalization_iterations: Annotated[int, Ge(0), Le(1000)] = setting(
        0, "rounds of cross-layer equalization; 20 fixes depthwise networks with per-tensor weights"
    )
    bias_correction: BiasCorrection = setting(
        "network",
        "correct the means that quantization shifted: against the float network (network), for each layer "
        "separately, as Brevitas does (layer), or not at all (none)",
    )
    correction_strength: Annotated[float, Gt(0), Le(1)] | None = setting(
        None,
        "share of the shift that bias_correction=network corrects, 1 for real data; not set: 60 / "
        "(60 + layers), because synthetic data overstate the shift, more so in deeper networks",
    )
    quantize_bias: bool | None = setting(
        None,
        "quantize biases to 32-bit integers on the accumulator's scale; not set: yes, except with "
        "target=finn, which moves them into thresholds",
    )
    learned_weight_scales: bool = setting(
        default=True, text="in training, learn the weight scales; false: compute them from the weights at every step"
    )
    gptq: bool = setting(
        default=False, text="choose weights layer by layer with GPTQ (one pass over the data per layer)"
    )
    learned_round: bool = setting(default=False, text="learn whether each weight is rounded up or down (slow)")
    learned_round_steps: Annotated[int, Ge(1), Le(100_000)] = setting(
        500, "optimization steps per layer for learned_round"
    )

    def activation_scale_for(self, bits: int) -> ActivationScale:
        """Return the statistic for activations of this width: with few levels, searching for a scale pays off.

        >>> BrevitasOptions().activation_scale_for(4), BrevitasOptions().activation_scale_for(8)
        ('mse', 'percentile')
        """
        return self.activation_scale or ("mse" if bits <= _SEARCHED_BITS else "percentile")

    def correction_strength_for(self, layers: int) -> float:
        """Return the share of the shift to correct in a network with this many weighted layers.

        >>> [BrevitasOptions(correction_strength=given).correction_strength_for(20) for given in (None, 1.0)]
        [0.75, 1.0]
        """
        return self.correction_strength or _HALF_STRENGTH_LAYERS / (_HALF_STRENGTH_LAYERS + layers)

    def keeps_ends(self, weight_bits: int) -> bool:
        """Return whether the first and the last layer keep float weights: with binary ones, as in BinaryConnect.

        >>> BrevitasOptions().keeps_ends(1), BrevitasOptions().keeps_ends(4)
        (True, False)
        """
        return (self.first_and_last or ("float" if weight_bits == 1 else "quantized")) == "float"

    def merges_batch_norm(self, weight_bits: int, *, training: bool) -> bool:
        """Return whether BatchNorm is folded.

        >>> [BrevitasOptions().merges_batch_norm(1, training=training) for training in (False, True)]
        [True, False]
        """
        return not (training and weight_bits == 1) if self.merge_batch_norm is None else self.merge_batch_norm

    @property
    def quantizes_bias(self) -> bool:
        """Whether biases are quantized.

        >>> BrevitasOptions().quantizes_bias, BrevitasOptions(target="finn").quantizes_bias
        (True, False)
        """
        return self.target != "finn" if self.quantize_bias is None else self.quantize_bias

    def percentile_for(self, bits: int) -> float:
        """Return the percentile for activations of this width: with fewer levels, clipping more helps.

        >>> BrevitasOptions().percentile_for(4), BrevitasOptions().percentile_for(8)
        (99.75, 100.0)
        """
        if self.percentile is not None:
            return self.percentile
        return next((percentile for highest, percentile in _PERCENTILES if bits <= highest), _WIDE_PERCENTILE)
