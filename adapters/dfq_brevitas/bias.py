"""Bias correction against the float network, layer by layer.

Brevitas's bias correction removes the mean shift that quantizing *a layer's weights* causes, measured on inputs that
went through float layers. Activation errors (clipping, aligning the branches of an addition) still shift the means, and
accumulate with depth. Here each layer's mean is restored to the float network's, with all preceding layers quantized
and corrected: the empirical bias correction of Nagel et al. (2019, "Data-Free Quantization Through Weight Equalization
and Bias Correction", appendix), per batch b and output channel:

    bias += strength mean_b( E[float network's output] - E[quantized network's output] )

The strength is an addition of this project. The features of synthetic inputs are fine texture, which quantization
destroys more readily than those of real inputs. So activations shrink more and the correction comes out too large: by a
fifth to a third in the late layers of a ResNet-20, by up to twice in those of a ResNet-56 (docs/how-to/brevitas.md).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dfq_brevitas.framework import (
    QuantTensor,
    QuantWeightBiasInputOutputLayer,
    quant_nn,
    quantization_status_manager,
)
from dfq_brevitas.quantized_once import weights_quantized_once
from dfq_plugins.inputs import run_network
from dfq_plugins.model_state import hooked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dfq_plugins.types import Inputs, Specification


@torch.no_grad()
def correct_biases(
    model: nn.Module, batches: Iterable[Inputs], strength: float = 1.0, spec: Specification | None = None
) -> None:
    """Correct the bias of every layer with quantized weights, in place; adds a bias if there is none.

    Two forward passes per batch; within a batch, each layer sees inputs that are already corrected.

    Args:
        model: a calibrated Brevitas model in eval mode.
        batches: inputs `(samples, *shape)`.
        strength: share of the shift that is corrected at the end; while shifts are measured, all of it is.
        spec: says how the model takes several inputs; None means by keywords.
    """
    layers = {name: module for name, module in model.named_modules() if is_weight_layer(module)}
    total = {name: torch.zeros(_channels(module)) for name, module in layers.items()}
    count = 0
    with weights_quantized_once(model):
        for count, inputs in enumerate(batches, start=1):  # noqa: B007  used for the mean below
            run = partial(run_network, model, inputs, spec)
            expected = _float_means(model, layers, run)

            def correct(name: str, output: torch.Tensor, expected: dict[str, torch.Tensor] = expected) -> torch.Tensor:
                error = expected[name] - channel_mean(output, layers[name])
                total[name] += error.cpu()
                return output + _spread(error, output, layers[name])

            _run_with_hooks(layers, correct, run)
    for name, module in layers.items():
        _add_to_bias(module, strength * total[name] / max(count, 1))


def is_weight_layer(module: nn.Module) -> bool:
    """Return whether a module is a Brevitas linear or convolution layer."""
    return isinstance(module, QuantWeightBiasInputOutputLayer) and isinstance(
        getattr(module, "weight", None), nn.Parameter
    )


def _float_means(model: nn.Module, layers: dict[str, Any], run: Callable[[], object]) -> dict[str, torch.Tensor]:
    means: dict[str, torch.Tensor] = {}

    def record(name: str, output: torch.Tensor) -> None:
        means[name] = channel_mean(output, layers[name])

    off = {"disable_act_quant": True, "disable_weight_quant": True, "disable_bias_quant": True}
    with quantization_status_manager(model, is_training=False, **off):
        _run_with_hooks(layers, record, run)
    return means


def _run_with_hooks(
    layers: dict[str, Any], hook: Callable[[str, torch.Tensor], Any], run: Callable[[], object]
) -> None:
    def make(name: str) -> Callable[..., Any]:
        return lambda _module, _inputs, output: hook(name, output.value if isinstance(output, QuantTensor) else output)

    with hooked(module.register_forward_hook(make(name)) for name, module in layers.items()):
        run()


def _channel_axis(layer: nn.Module, dimensions: int) -> int:
    return dimensions - 1 if isinstance(layer, quant_nn.QuantLinear) else 1


def _channels(layer: Any) -> int:
    return int(layer.out_features if isinstance(layer, quant_nn.QuantLinear) else layer.out_channels)


def channel_mean(output: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    """Return the mean of each output channel, `(channels,)`."""
    axis = _channel_axis(layer, output.ndim)
    return output.mean([other for other in range(output.ndim) if other != axis])


def _spread(error: torch.Tensor, output: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    shape = [1] * output.ndim
    shape[_channel_axis(layer, output.ndim)] = -1
    return error.reshape(shape)


def _add_to_bias(layer: Any, correction: torch.Tensor) -> None:
    correction = correction.to(layer.weight)
    if layer.bias is None:
        layer.register_parameter("bias", nn.Parameter(correction))
    else:
        layer.bias.data += correction
