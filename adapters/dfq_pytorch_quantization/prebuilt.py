"""Replaces the framework's modules in a model that was built with them, so that the recipe applies to every layer.

`quant_modules.initialize()` turns `torch.nn.Conv2d` into `QuantConv2d`, with the bit widths and calibrators of its
default descriptors. If such modules were kept, they would follow those descriptors instead of the recipe.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dfq_plugins.errors import ModelError
from dfq_pytorch_quantization.framework import quant_nn
from dfq_pytorch_quantization.swap import TWINS

if TYPE_CHECKING:
    from torch import nn

FLOAT_CLASSES: dict[Any, type[nn.Module]] = {twin: base for base, twin in TWINS.items()}
"""The class of torch.nn that each class of the framework quantizes."""

QUANTIZERS = ("_input_quantizer", "_weight_quantizer")


def to_float_modules(model: nn.Module) -> nn.Module:
    """Replace, in place, each of the framework's modules with the torch.nn module that it quantizes.

    Returns:
        `model`, or its replacement if the model is a single layer.

    Raises:
        ModelError: one of them is calibrated, or this calibrator has no float module for it.
    """
    floats: dict[int, nn.Module] = {}
    for name, module in list(model.named_modules()):
        if type(module) in FLOAT_CLASSES:
            _require_uncalibrated(name, module)
            floats[id(module)] = _float_module(module)
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # noqa: SLF001  (named_children() hides a child's second name)
            if id(child) in floats:
                parent._modules[name] = floats[id(child)]  # noqa: SLF001  (setattr fails on names such as "0.conv")
    model = floats.get(id(model), model)
    _require_no_quantizer(model)
    return model


def _float_module(module: nn.Module) -> nn.Module:
    """Return a torch.nn module with the parameters, buffers, hooks and settings of `module`."""
    base = FLOAT_CLASSES[type(module)]
    plain = base.__new__(base)
    kept = {name: child for name, child in vars(module)["_modules"].items() if name not in QUANTIZERS}
    vars(plain).update({**vars(module), "_modules": kept})
    vars(plain).pop("_fake_quant", None)
    return plain


def _require_uncalibrated(name: str, module: nn.Module) -> None:
    for attribute in QUANTIZERS:
        quantizer: Any = getattr(module, attribute, None)
        if quantizer is not None and quantizer.amax is not None:
            raise ModelError(
                f"A model is quantized from its float weights, but {name or 'the model'!r} ({type(module).__name__}) "
                f"is already calibrated (amax {quantizer.amax.max().item():.4g}), and the recipe would replace that "
                "range. Build the model without quant_modules.initialize() and load its weights, or export it in your "
                "own code."
            )


def _require_no_quantizer(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, quant_nn.TensorQuantizer):
            owner = model.get_submodule(name.rpartition(".")[0])
            raise ModelError(
                f"{name!r} is a quantizer of pytorch-quantization inside {type(owner).__name__}, which the recipe "
                "cannot configure. Build the model from torch.nn, without quant_modules.initialize(); for the "
                "shortcuts of residual additions, use the option residual_quantizer."
            )
