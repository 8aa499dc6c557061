"""Replaces float modules with the framework's quantized ones, instance by instance; torch.nn is not patched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import modules
from torch.nn.modules.conv import _ConvNd

from dfq_pytorch_quantization.framework import QuantDescriptor, quant_modules
from dfq_shared.tensorrt.quantizers import LAYERS, POOLS, weight_axis

if TYPE_CHECKING:
    from dfq_plugins.types import Recipe
    from dfq_shared.tensorrt.options import RangeOptions

TWINS: dict[type[nn.Module], Any] = {
    getattr(modules, entry.mod_name): entry.replace_mod
    for entry in quant_modules._DEFAULT_QUANT_MAP  # noqa: SLF001  (the framework's only list of its modules)
    if issubclass(getattr(modules, entry.mod_name), (*LAYERS, *POOLS))
}
"""The quantized class of each float class, as `quant_modules.initialize()` would patch them into torch.nn."""


def float_class(module: nn.Module) -> type[nn.Module] | None:
    """Return the torch.nn class that `module` behaves as, or None if there is no quantized class for it.

    A subclass counts as its base if it adds only a constructor: the quantized module that replaces it could not keep
    other methods.
    """
    for index, base in enumerate(type(module).__mro__):
        if base in TWINS:
            derived = type(module).__mro__[:index]
            return base if all(_adds_only_a_constructor(cls) for cls in derived) else None
    return None


def _adds_only_a_constructor(cls: type) -> bool:
    return not any(name == "__call__" or not name.startswith("__") for name in vars(cls))


def reason_for_float(module: nn.Module, *, pooling: bool) -> str | None:
    """Return why a layer stays in float; None for a layer that is replaced or has nothing to quantize."""
    kind = type(module).__name__
    if isinstance(module, (*LAYERS, *POOLS)):
        return _reason_for_float_layer(module, kind, pooling=pooling)
    if isinstance(module, modules.batchnorm._NormBase):  # noqa: SLF001  (torch has no public common base)
        return (
            f"{kind}: no quantized class in the framework (TensorRT folds a BatchNorm into the convolution before it)"
        )
    has_weights = next(module.parameters(recurse=False), None) is not None
    return f"{kind}: this calibrator has no quantized class for it" if has_weights else None


def _reason_for_float_layer(module: nn.Module, kind: str, *, pooling: bool) -> str | None:
    if isinstance(module, POOLS) and not pooling:
        return f"{kind}: average pooling is left in float by the option pooling=False"
    if float_class(module) is None:
        return f"{kind}: a subclass that defines methods, which a quantized replacement would lose"
    if getattr(module, "padding_mode", "zeros") != "zeros":
        return f"{kind}: the framework's quantized class does not pad with padding_mode={module.padding_mode!r}"
    return None


def swap(model: nn.Module, recipe: Recipe, options: RangeOptions) -> nn.Module:
    """Replace, in place, every layer that the framework can quantize; a module used twice stays one module.

    Returns:
        `model`, or the quantized module that replaces it where the model is a single layer.
    """
    twins: dict[int, nn.Module] = {}
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # noqa: SLF001  (named_children() hides a child's second name)
            if child is not None and _is_swapped(child, options):
                if id(child) not in twins:
                    twins[id(child)] = _twin(child, recipe, options)
                parent._modules[name] = twins[id(child)]  # noqa: SLF001  (setattr fails on names such as "0.conv")
    return _twin(model, recipe, options) if _is_swapped(model, options) else model


def _is_swapped(module: nn.Module, options: RangeOptions) -> bool:
    return float_class(module) is not None and reason_for_float(module, pooling=options.pooling) is None


def _twin(module: nn.Module, recipe: Recipe, options: RangeOptions) -> nn.Module:
    """Return the quantized module that holds the parameters, buffers, hooks and settings of `module`."""
    base = next(cls for cls in type(module).__mro__ if cls in TWINS)
    descriptors = {
        "quant_desc_input": QuantDescriptor(num_bits=recipe.activation_bits, calib_method=calib_method(options))
    }
    if issubclass(base, LAYERS):
        descriptors["quant_desc_weight"] = QuantDescriptor(
            num_bits=recipe.weight_bits, axis=weight_axis(base) if options.per_channel else None
        )
    # The smallest module of its class, built without touching the random state; its state is then replaced.
    with torch.device("meta"):
        twin: nn.Module = TWINS[base](*_smallest_arguments(base), **descriptors)
    own_modules = vars(twin)["_modules"]
    vars(twin).update({**vars(module), "_modules": {**vars(module)["_modules"], **own_modules}})
    return twin


def calib_method(options: RangeOptions) -> str:
    """Return the framework's name for the calibrator that the activations need."""
    return "max" if options.activations == "max" else "histogram"


def _smallest_arguments(base: type[nn.Module]) -> tuple[int, ...]:
    if issubclass(base, _ConvNd):
        return (1, 1, 1)
    return (1, 1) if issubclass(base, modules.Linear) else (1,)
