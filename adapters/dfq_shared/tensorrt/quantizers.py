"""The `TensorQuantizer` of both of NVIDIA's frameworks, by the attributes they share, and the modules that hold one.

ModelOpt's class descends from pytorch-quantization's; neither has public access to most of its state.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn import modules
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

# torch.nn.modules rather than torch.nn: pytorch-quantization's `quant_modules.initialize()` patches only the latter.
LAYERS = (_ConvNd, modules.Linear)
POOLS = (
    modules.AvgPool1d,
    modules.AvgPool2d,
    modules.AvgPool3d,
    modules.AdaptiveAvgPool1d,
    modules.AdaptiveAvgPool2d,
    modules.AdaptiveAvgPool3d,
)


def is_quantizer(module: nn.Module) -> bool:
    """Return whether `module` is a tensor quantizer of one of the frameworks."""
    return hasattr(module, "_if_quant") and hasattr(module, "_if_calib")


def is_active(quantizer: Any) -> bool:
    """Return whether a quantizer is switched on."""
    return not quantizer._disabled  # noqa: SLF001  (no public access that both have)


def is_integer(quantizer: Any) -> bool:
    """Return whether a quantizer's levels are integers; ModelOpt has floating-point ones, with two widths."""
    return isinstance(quantizer.num_bits, int)


def is_quantized(module: nn.Module) -> bool:
    """Return whether `module` has a quantizer on its input that belongs to the recipe."""
    quantizer = getattr(module, "input_quantizer", None)
    return isinstance(quantizer, nn.Module) and not getattr(quantizer, OUTSIDE_RECIPE, False)


OUTSIDE_RECIPE = "_dfq_outside_recipe"
"""Attribute of quantizers that a framework inserted into modules that the recipe leaves in float."""


def quantized_modules(model: nn.Module) -> list[tuple[str, Any]]:
    """Return the name and module of every quantized layer and pooling of `model`, in order."""
    return [(name, module) for name, module in model.named_modules() if is_quantized(module)]


def calibrated_inputs(model: nn.Module) -> list[tuple[str, Any]]:
    """Return the name and module of each quantized module whose input range must be calibrated."""
    return [(name, m) for name, m in quantized_modules(model) if m.input_quantizer._calibrator is not None]  # noqa: SLF001


def set_unsigned(quantizer: Any, *, unsigned: bool) -> None:
    """Make an input quantizer's integers signed or unsigned, and the levels in its calibrator's searches too."""
    quantizer.unsigned = unsigned
    quantizer._calibrator._unsigned = unsigned  # noqa: SLF001  (no public access)


def weight_axis(kind: type[nn.Module]) -> int:
    """Return the output channel axis in the weight of a layer of class `kind`."""
    return 1 if issubclass(kind, _ConvTransposeNd) else 0
