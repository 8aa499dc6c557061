"""A quantized network that does not follow the float one is never handed over without a word."""

from __future__ import annotations

import math
import warnings

import pytest

from dfq_plugins.errors import DfqWarning
from dfq_plugins.network.agreement import OutputAgreement
from dfq_plugins.quantization.guard import warn_of_outputs, warn_of_part
from dfq_plugins.types import Recipe


def agreement(decibels: float, non_finite: int = 0) -> OutputAgreement:
    return OutputAgreement("masks", "values", 64, decibels, math.nan, non_finite=non_finite)


def test_an_output_far_from_float_is_named_with_its_figure_and_the_bound() -> None:
    with pytest.warns(
        DfqWarning, match=r"torch-ao quantized does not follow .* masks: signal-to-noise ratio 1\.2 dB.*10 dB"
    ):
        warn_of_outputs([agreement(1.2)], Recipe(8, 8), "torch-ao")


def test_values_that_are_not_finite_are_said() -> None:
    with pytest.warns(DfqWarning, match=r"NaN or infinity in 3 of 64 samples"):
        warn_of_outputs([agreement(-math.inf, 3)], Recipe(8, 8), "brevitas")


@pytest.mark.parametrize(("decibels", "recipe"), [(30.0, Recipe(8, 8)), (6.0, Recipe(4, 4)), (4.0, Recipe(8, 4))])
def test_ordinary_losses_say_nothing(decibels: float, recipe: Recipe) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_outputs([agreement(decibels)], recipe, "torch-ao")


@pytest.mark.parametrize("decibels", [1.2, -math.inf])
def test_a_part_is_held_to_the_same_bound(decibels: float) -> None:
    with pytest.warns(DfqWarning, match=r"part that brevitas quantized does not follow the float part: rpn\.head: "):
        warn_of_part("rpn.head", decibels, Recipe(8, 8), "brevitas")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_part("rpn.head", 30.0, Recipe(8, 8), "brevitas")
