"""Lets ModelOpt insert its quantizers, and configures those of the layers that the recipe is about.

ModelOpt's presets switch quantizers by wildcards on their names, which leave layers called `output`, `router` or
`proj_out` in float. Here, ModelOpt inserts all of them switched off, and each layer gets its own configuration by its
class: no name matters.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch.nn import modules

from dfq_modelopt.framework import QuantizerAttributeConfig, mto, mtq, quant_nn, quiet
from dfq_plugins.errors import ModelError
from dfq_shared.tensorrt.quantizers import LAYERS, OUTSIDE_RECIPE, POOLS, is_quantizer, weight_axis

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from dfq_plugins.types import Recipe
    from dfq_shared.tensorrt.options import RangeOptions

ALL_OFF: dict[str, Any] = {"quant_cfg": [{"quantizer_name": "*", "enable": False}], "algorithm": None}
"""ModelOpt's configuration that inserts every quantizer, switches all of them off and calibrates nothing."""


FP8 = (4, 3)
"""Bits of the exponent and the mantissa of E4M3."""


def insert_quantizers(model: nn.Module, recipe: Recipe, options: RangeOptions, *, fp8: bool) -> nn.Module:
    """Insert ModelOpt's quantizers into `model`, in place, and configure those of its layers."""
    with quiet(), _recurrent_hidden(model):
        mtq.quantize(model, ALL_OFF)
    converted: list[Any] = [module for module in model.modules() if hasattr(module, "input_quantizer")]
    for layer in converted:
        if isinstance(layer, LAYERS) or (options.pooling and isinstance(layer, POOLS)):
            _configure(layer, recipe, options, fp8=fp8)
        else:
            setattr(layer.input_quantizer, OUTSIDE_RECIPE, True)
    return model


@contextmanager
def _recurrent_hidden(model: nn.Module) -> Iterator[None]:
    """Keep ModelOpt off recurrent layers within the block.

    Its own version of them computes step by step in Python, even with its quantizers off, and cannot be copied. It
    takes every class whose forward is that of torch.nn.
    """
    kinds = {module: type(module) for module in model.modules() if isinstance(module, modules.RNNBase)}
    for module, kind in kinds.items():
        module.__class__ = type(kind.__name__, (kind,), {"forward": lambda *_: None})
    try:
        yield
    finally:
        for module, kind in kinds.items():
            module.__class__ = kind


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


def activation_config(bits: int, *, histogram: bool, fp8: bool) -> Any:
    """Return ModelOpt's configuration of a quantizer of activations; floating-point levels need no histogram."""
    calibrator = "histogram" if histogram and not fp8 else "max"
    return QuantizerAttributeConfig(num_bits=FP8 if fp8 else bits, axis=None, calibrator=calibrator, enable=True)


def _configure(layer: Any, recipe: Recipe, options: RangeOptions, *, fp8: bool) -> None:
    histogram = options.activations != "max"
    layer.input_quantizer.set_from_attribute_config(
        activation_config(recipe.activation_bits, histogram=histogram, fp8=fp8)
    )
    if hasattr(layer, "weight_quantizer"):
        axis = weight_axis(type(layer)) if options.per_channel else None
        layer.weight_quantizer.set_from_attribute_config(
            QuantizerAttributeConfig(
                num_bits=FP8 if fp8 else recipe.weight_bits, axis=axis, calibrator="max", enable=True
            )
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
