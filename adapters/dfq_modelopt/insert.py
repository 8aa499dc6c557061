"""Lets ModelOpt insert its quantizers, and configures those of the layers that the recipe is about.

ModelOpt's presets switch quantizers by wildcards on their names, which leave layers called `output`, `router` or
`proj_out` in float. Here, ModelOpt inserts all of them switched off, and each layer gets its own configuration by its
class: no name matters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import modules

from dfq_modelopt.framework import QuantizerAttributeConfig, mto, mtq, quant_nn, quiet
from dfq_plugins.errors import ModelError
from dfq_shared.tensorrt.quantizers import LAYERS, OUTSIDE_RECIPE, POOLS, is_quantizer, weight_axis

if TYPE_CHECKING:
    from torch import nn

    from dfq_plugins.types import Recipe
    from dfq_shared.tensorrt.options import RangeOptions

ALL_OFF: dict[str, Any] = {"quant_cfg": [{"quantizer_name": "*", "enable": False}], "algorithm": None}
"""ModelOpt's configuration that inserts every quantizer, switches all of them off and calibrates nothing."""


def insert_quantizers(model: nn.Module, recipe: Recipe, options: RangeOptions) -> nn.Module:
    """Insert ModelOpt's quantizers into `model`, in place, and configure those of its layers.

    Raises:
        ModelError: the model was already converted by ModelOpt.
    """
    require_unconverted(model)
    model.requires_grad_(requires_grad=False)
    with quiet():
        mtq.quantize(model, ALL_OFF)
    module: Any
    for module in model.modules():
        if not hasattr(module, "input_quantizer"):
            continue
        if isinstance(module, LAYERS) or (options.pooling and isinstance(module, POOLS)):
            _configure(module, recipe, options)
        else:
            setattr(module.input_quantizer, OUTSIDE_RECIPE, True)
    return model


def require_unconverted(model: nn.Module) -> None:
    """Require that ModelOpt has not converted the model.

    Raises:
        ModelError: it has.
    """
    held = next((name for name, module in model.named_modules() if is_quantizer(module)), None)
    if held is not None or mto.ModeloptStateManager.is_converted(model):
        where = "" if held is None else f" (it holds the quantizer {held!r})"
        raise ModelError(
            f"A model is quantized from its float weights, but ModelOpt has already converted this one{where}, and the "
            "recipe would replace its configuration. Build the model without ModelOpt and load its weights, or export "
            "it in your own code."
        )


def _configure(layer: Any, recipe: Recipe, options: RangeOptions) -> None:
    calibrator = "max" if options.activations == "max" else "histogram"
    layer.input_quantizer.set_from_attribute_config(
        QuantizerAttributeConfig(num_bits=recipe.activation_bits, axis=None, calibrator=calibrator, enable=True)
    )
    if isinstance(layer, LAYERS):
        axis = weight_axis(type(layer)) if options.per_channel else None
        layer.weight_quantizer.set_from_attribute_config(
            QuantizerAttributeConfig(num_bits=recipe.weight_bits, axis=axis, calibrator="max", enable=True)
        )


def reason_for_float(module: nn.Module, *, pooling: bool) -> str | None:
    """Return why a module stays in float; None for a layer that is quantized or has nothing to quantize."""
    kind = type(module).__name__.removeprefix("Quant")
    if isinstance(module, POOLS) and not pooling:
        return f"{kind}: average pooling is left in float by the option pooling=False"
    if isinstance(module, (*LAYERS, *POOLS)):
        if hasattr(module, "input_quantizer") or type(module) in quant_nn.QuantModuleRegistry:
            return None
        return f"{kind}: a subclass with its own forward, which ModelOpt does not quantize"
    if isinstance(module, modules.batchnorm._NormBase):  # noqa: SLF001  (torch has no public common base)
        return f"{kind}: this calibrator leaves it in float (TensorRT folds a BatchNorm into the convolution before it)"
    has_weights = next(module.parameters(recurse=False), None) is not None
    return f"{kind}: this calibrator quantizes convolutions, linear layers and average pooling" if has_weights else None


def transposed_view(layer: Any, *, per_channel: bool) -> Any:
    """Return what `calib.calibrate_weights` needs of a layer, with the output channels on axis 0.

    That function looks for them on axis 1 only in ModelOpt's older classes of transposed convolutions.
    """
    axis = weight_axis(type(layer))
    return _View(layer.weight.detach().transpose(0, axis) if per_channel else layer.weight.detach(), layer)


class _Range:
    def __init__(self, quantizer: Any) -> None:
        self.num_bits, self.unsigned, self.amax = quantizer.num_bits, quantizer.unsigned, None


class _View(torch.nn.Module):
    def __init__(self, weight: torch.Tensor, layer: Any) -> None:
        super().__init__()
        self.weight = weight
        self.weight_quantizer = _Range(layer.weight_quantizer)
