"""Number formats: which recipes ONNX Runtime quantizes to, and its types for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnxruntime.quantization import QuantType

from dfq_onnxruntime.saturation import is_x86
from dfq_plugins.errors import UsageError

if TYPE_CHECKING:
    from dfq_onnxruntime.options import OnnxRuntimeOptions
    from dfq_plugins.types import Recipe

WEIGHTS = {4: QuantType.QInt4, 8: QuantType.QInt8, 16: QuantType.QInt16}
ACTIVATIONS = {
    (8, "int8"): QuantType.QInt8,
    (8, "uint8"): QuantType.QUInt8,
    (16, "int8"): QuantType.QInt16,
    (16, "uint8"): QuantType.QUInt16,
}
ACTIVATION_BITS = (8, 16)
WIDE_OPSET = 21
"""The first version of ONNX's operators with integers of 4 and 16 bits."""


def require_supported(recipe: Recipe, *, training: bool) -> None:
    """Reject training, and bit widths without a type.

    Raises:
        UsageError: the message names the value and what is supported.
    """
    if training:
        raise UsageError(
            "ONNX Runtime quantizes after training only: its files cannot be trained. Fine-tune with another "
            "calibrator, e.g. torch-ao, pytorch-quantization or brevitas, and export that, or only calibrate."
        )
    if recipe.weight_bits not in WEIGHTS or recipe.activation_bits not in ACTIVATION_BITS:
        raise UsageError(
            f"ONNX Runtime supports weights of {_listed(WEIGHTS)} bits and activations of {_listed(ACTIVATION_BITS)} "
            f"bits, got {recipe.weight_bits} and {recipe.activation_bits} ({recipe}). Choose w8a8, w4a8 or w8a16."
        )


def types_for(recipe: Recipe, options: OnnxRuntimeOptions) -> tuple[Any, Any]:
    """Return the types of activations and weights."""
    automatic = "uint8" if is_x86() and not options.symmetric else "int8"
    kind = automatic if options.activations == "auto" else options.activations
    return ACTIVATIONS[recipe.activation_bits, kind], WEIGHTS[recipe.weight_bits]


def least_opset(recipe: Recipe) -> int:
    """Return the version of ONNX's operators that a file with these bit widths needs: 13 has scales per channel."""
    return 13 if (recipe.weight_bits, recipe.activation_bits) == (8, 8) else WIDE_OPSET


def _listed(widths: Any) -> str:
    *first, last = map(str, widths)
    return f"{', '.join(first)} or {last}"
