"""Checks which recipes and options work with FINN."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfq_brevitas.quantizers import FLOAT_BITS
from dfq_plugins.errors import UsageError

if TYPE_CHECKING:
    from dfq_brevitas.options import BrevitasOptions
    from dfq_plugins.types import Recipe

WIDEST_THRESHOLDS = 8
"""FINN does not convert wider activations unless its builder is configured to (`max_multithreshold_bit_width`)."""


def require_finn_recipe(recipe: Recipe, options: BrevitasOptions) -> None:
    """Reject bit widths and options that contradict target=finn.

    Raises:
        UsageError: activations or an end layer stay in float, or additions are wider than FINN's thresholds.
    """
    if recipe.activation_bits == FLOAT_BITS:
        raise UsageError(
            f"target=finn needs quantized activations, because FINN computes only with integers, got {recipe}. "
            "Choose e.g. w4a4, or leave target=finn out."
        )
    if options.keeps_ends(recipe.weight_bits):
        raise UsageError(
            f"target=finn needs quantized weights in the first and the last layer too, got {recipe} with float ones. "
            "Add first_and_last=quantized."
        )
    if options.addition_bits > WIDEST_THRESHOLDS:
        raise UsageError(
            f"target=finn needs additions of at most {WIDEST_THRESHOLDS} bits, because FINN does not convert wider "
            f"activations, got addition_bits={options.addition_bits}. Choose {WIDEST_THRESHOLDS}."
        )
