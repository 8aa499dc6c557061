"""Brevitas's quantizers, configured with the recipe's widths and the options' statistics, mapped to torch layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dfq_brevitas.framework import (
    BinaryQuant,
    CeilSte,
    MSESymmetricScaleSubInjector,
    ParameterFromStatsFromParameterScaling,
    RestrictValueType,
    ScalingImplType,
    ScalingPerOutputType,
    SignedBinaryWeightPerTensorConst,
    StatsFromParameterScaling,
    StatsOp,
    brevitas_config,
    nonlinear,
    quant_nn,
    scaled_int,
)
from dfq_brevitas.percentile import TailPercentile

if TYPE_CHECKING:
    from dfq_brevitas.options import BrevitasOptions
    from dfq_plugins.types import Recipe

LAYERS: tuple[type[nn.Module], ...] = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
"""The layers whose weights are quantized."""

FLOAT_BITS = 32
"""The width of activations that are not quantized."""

UNSIGNED_ACTIVATIONS: tuple[type[nn.Module], ...] = (nn.ReLU, nn.ReLU6, nn.Sigmoid)

_WEIGHTS = {
    ("max", True): scaled_int.Int8WeightPerChannelFloat,
    ("max", False): scaled_int.Int8WeightPerTensorFloat,
    ("mse", True): scaled_int.Int8WeightPerChannelFloatMSE,
    ("mse", False): scaled_int.Int8WeightPerTensorFloatMSE,
}


class ClippedReLU(nn.Module):
    """ReLU6, but not a subclass of Hardtanh, whose clipping Brevitas replaces with the quantizer's range."""

    def __init__(self) -> None:  # without parameters, so that Brevitas's injector can build it
        super().__init__()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Clip to 0..6."""
        return nn.functional.relu6(inputs)


class QuantReLU6(quant_nn.QuantReLU):  # type: ignore[misc]  # Brevitas is untyped
    """A ReLU6 with Brevitas's quantizer: the statistics see the values after clipping at 6."""

    def __init__(self, act_quant: Any, *, return_quant_tensor: bool = False, **settings: Any) -> None:
        nonlinear.QuantNonLinearActLayer.__init__(
            self,
            act_impl=ClippedReLU,
            passthrough_act=True,
            input_quant=None,
            act_quant=act_quant,
            return_quant_tensor=return_quant_tensor,
            **settings,
        )


@dataclass(frozen=True)
class QuantizerMaps:
    """The replacements that `brevitas.graph.quantize.quantize` makes."""

    layers: dict[type[nn.Module], tuple[Any, dict[str, Any]]]
    activations: dict[type[nn.Module], tuple[Any, dict[str, Any]]]
    identities: dict[str, tuple[Any, dict[str, Any]]]


def quantizer_maps(recipe: Recipe, options: BrevitasOptions, *, training: bool = False) -> QuantizerMaps:
    """Return the maps of layers, activations and inserted quantizers for a recipe, optionally for training."""
    if recipe.activation_bits == FLOAT_BITS:
        weight = weight_quantizer(recipe, options, follow_weights=training and not options.learned_weight_scales)
        # A bias on the accumulator's grid would need the scale of the layer's input, which is float here.
        return QuantizerMaps(
            _layers({"weight_quant": weight, "bias_quant": None, "return_quant_tensor": False}), {}, {}
        )
    bias = scaled_int.Int32Bias if options.quantizes_bias else None
    weight = weight_quantizer(recipe, options, follow_weights=training and not options.learned_weight_scales)
    layer = {"weight_quant": weight, "bias_quant": bias, "return_quant_tensor": False}
    signed = {"act_quant": activation_quantizer(recipe, options, signed=True), "return_quant_tensor": True}
    unsigned = {"act_quant": activation_quantizer(recipe, options, signed=False), "return_quant_tensor": True}
    return QuantizerMaps(
        layers=_layers(layer),
        activations={
            nn.ReLU: (quant_nn.QuantReLU, unsigned),
            nn.ReLU6: (QuantReLU6, unsigned),
            nn.Sigmoid: (quant_nn.QuantSigmoid, unsigned),
        },
        identities={
            "signed": (quant_nn.QuantIdentity, signed),
            "unsigned": (quant_nn.QuantIdentity, unsigned),
        },
    )


def _layers(settings: dict[str, Any]) -> dict[type[nn.Module], tuple[Any, dict[str, Any]]]:
    return {kind: (getattr(quant_nn, f"Quant{kind.__name__}"), settings) for kind in LAYERS}


def weight_quantizer(recipe: Recipe, options: BrevitasOptions, *, follow_weights: bool = False) -> Any:
    """Return a symmetric weight quantizer.

    Its scale is computed once and is a parameter from then on, or is recomputed from the weights each time.
    """
    if recipe.weight_bits == 1:
        return binary_quantizer(options, follow_weights=follow_weights)
    return _with_search(_WEIGHTS[options.weight_scale, options.per_channel], options, options.weight_scale).let(
        bit_width=recipe.weight_bits,
        narrow_range=options.narrow_range,
        scaling_impl=StatsFromParameterScaling if follow_weights else ParameterFromStatsFromParameterScaling,
        **_restriction(options),
    )


def binary_quantizer(options: BrevitasOptions, *, follow_weights: bool) -> Any:
    """Return Brevitas's quantizer to {-d, +d}, where d is the mean of the absolute weights, the closest fit.

    With d as a separate parameter, the latent weights are clipped to -d..d, as in BinaryConnect (Courbariaux et al.
    2015). A d computed from the weights must not clip them: that would lower their mean, and so d, at each step.
    """
    per_output = ScalingPerOutputType.CHANNEL if options.per_channel else ScalingPerOutputType.TENSOR
    settings = {"scaling_stats_op": StatsOp.AVE, "scaling_per_output_type": per_output}
    if follow_weights:
        settings |= {"scaling_impl_type": ScalingImplType.STATS, "tensor_quant": BinaryQuant}
    else:
        settings |= {"scaling_impl_type": ScalingImplType.PARAMETER_FROM_STATS}
    return SignedBinaryWeightPerTensorConst.let(**settings)


def activation_quantizer(recipe: Recipe, options: BrevitasOptions, *, signed: bool) -> Any:
    """Return a symmetric per-tensor quantizer whose scale is the mean over batches of the chosen statistic."""
    statistic = options.activation_scale_for(recipe.activation_bits)
    if statistic == "mse":
        chosen = scaled_int.Int8ActPerTensorFloatMSE if signed else scaled_int.Uint8ActPerTensorFloatMSE
        chosen = _with_search(chosen, options, "mse")
    else:
        chosen = scaled_int.Int8ActPerTensorFloat if signed else scaled_int.Uint8ActPerTensorFloat
        if statistic == "max":
            chosen = chosen.let(scaling_stats_op=StatsOp.MAX)
        else:
            chosen = chosen.let(high_percentile_q=options.percentile_for(recipe.activation_bits))
            if not brevitas_config.JIT_ENABLED:  # TorchScript compiles Brevitas's own classes only
                chosen = chosen.let(scaling_stats_impl=TailPercentile)
    return chosen.let(bit_width=recipe.activation_bits, **_restriction(options))


def _restriction(options: BrevitasOptions) -> dict[str, Any]:
    """Return Brevitas's settings for power-of-two scales, rounded up so that the range is not clipped further."""
    if not options.power_of_two_scales:
        return {}
    return {
        "restrict_scaling_type": RestrictValueType.POWER_OF_TWO,
        "restrict_value_float_to_int_impl": CeilSte,
    }


def _with_search(quantizer: Any, options: BrevitasOptions, statistic: str) -> Any:
    """Set the number of candidates that a quantizer's MSE search tries."""
    if statistic != "mse":
        return quantizer
    # The search has a separate injector, which does not see the values given to the quantizer.
    search = type("MSESearch", (MSESymmetricScaleSubInjector,), {"mse_iters": options.mse_candidates})
    return quantizer.let(mse_scale=search)
