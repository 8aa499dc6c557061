"""Compares a quantized network with the float one, and warns loudly where it does not follow."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

from dfq_plugins.errors import DfqWarning

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dfq_plugins.network.agreement import OutputAgreement
    from dfq_plugins.types import Recipe

_BYTE = 8
_LOWEST_DECIBELS = {True: 10.0, False: 3.0}
"""Signal-to-noise ratio in dB below which something is wrong, at eight bits and below eight bits.

At eight bits, networks that are quantized as they should be are at 20 to 50 dB. Below, a good network may lose much.
"""


def lowest_decibels(recipe: Recipe) -> float:
    """Return the signal-to-noise ratio, in dB, that a quantized network should have at least.

    >>> from dfq_plugins.types import Recipe
    >>> lowest_decibels(Recipe(8, 8)), lowest_decibels(Recipe(4, 4))
    (10.0, 3.0)
    """
    return _LOWEST_DECIBELS[min(recipe.weight_bits, recipe.activation_bits) >= _BYTE]


def warn_of_outputs(outputs: Iterable[OutputAgreement], recipe: Recipe, calibrator: str) -> None:
    """Warn of each output of a quantized network that is not finite, or that does not follow the float network.

    Args:
        outputs: how the outputs agree with those of the float network, on calibration data.
        recipe: bit widths; they decide what is too far.
        calibrator: name of the calibrator, for the message.
    """
    bound = lowest_decibels(recipe)
    for output in outputs:
        if output.non_finite:
            warnings.warn(
                f"The float or the quantized network returns NaN or infinity: {output}. If it is the quantized one, "
                "its ranges may be far too narrow, for example in front of a division. Keep that part in float, or use "
                "another calibrator.",
                DfqWarning,
                stacklevel=3,
            )
        elif not math.isnan(output.decibels) and output.decibels < bound:
            warnings.warn(_too_far("network", str(output), recipe, calibrator), DfqWarning, stacklevel=3)


def warn_of_part(name: str, decibels: float, recipe: Recipe, calibrator: str) -> None:
    """Warn of a quantized part whose outputs are not finite, or do not follow those of the float part.

    Args:
        name: name of the part.
        decibels: signal-to-noise ratio of its worst output; minus infinity if a value is not finite.
        recipe: bit widths; they decide what is too far.
        calibrator: name of the calibrator, for the message.
    """
    if decibels < lowest_decibels(recipe):
        text = f"{name}: signal-to-noise ratio {decibels:.1f} dB"
        warnings.warn(_too_far("part", text, recipe, calibrator), DfqWarning, stacklevel=3)


def _too_far(what: str, text: str, recipe: Recipe, calibrator: str) -> str:
    return (
        f"The {what} that {calibrator} quantized does not follow the float {what}: {text}. At {recipe} it should have "
        f"at least {lowest_decibels(recipe):g} dB. Calibrate with data that the network knows, use more bits, keep the "
        "layers in float that cause it, or use another calibrator."
    )
