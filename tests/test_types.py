"""The base classes of plugins: what a subclass must do, what it may do, and that a slip is noticed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from dfq_plugins.demo.network import DIGITS_SPEC, digits_network
from dfq_plugins.errors import PluginError, UsageError
from dfq_plugins.synthesis.run import synthesize
from dfq_plugins.types import Calibrator, DataGenerator, InputSpec, LearningGenerator, NetworkSpec, TimeBudget


class Complete(DataGenerator):
    """The least that a generator must be."""

    def generate(self, *_: Any, **__: Any) -> Any:
        return iter(())


def test_what_a_generator_may_do_has_defaults(tiny_network: torch.nn.Module, tiny_spec: Any) -> None:
    generator = Complete()
    assert (generator.conditional, generator.timed) == (False, False)
    generator.check_supported(tiny_network, tiny_spec)
    assert generator.resolved_options("options") == "options"


@pytest.mark.parametrize(
    ("base", "name", "meant"),
    [
        (DataGenerator, "check_suported", "check_supported"),
        (DataGenerator, "conditionnal", "conditional"),
        (LearningGenerator, "progres", "progress"),
        (LearningGenerator, "feed_back", "feedback"),
        (Calibrator, "scale_parameter", "scale_parameters"),
        (Calibrator, "freeze_range", "freeze_ranges"),
        (Complete, "generates", "generate"),
    ],
)
def test_a_misspelled_ability_is_an_error_that_names_the_nearest(base: type, name: str, meant: str) -> None:
    with pytest.raises(PluginError, match=f"Mine defines '{name}', which is never called. Did you mean '{meant}'"):
        type("Mine", (base,), {name: lambda *_: None})


@pytest.mark.parametrize("name", ["_check_suported", "draw", "network", "batches_of"])
def test_names_of_the_author_s_choice_are_free(name: str) -> None:
    type("Mine", (DataGenerator,), {name: lambda *_: None})


def test_a_subclass_of_a_plugin_may_override_what_it_added() -> None:
    first = type("First", (Complete,), {"draw": lambda *_: None})
    type("Second", (first,), {"draw": lambda *_: None})


def test_what_is_missing_cannot_be_built() -> None:
    with pytest.raises(TypeError, match="abstract"):
        DataGenerator()  # type: ignore[abstract]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shape": (1, 8.5, 8)}, "An input shape needs positive sizes"),
        ({"shape": (True, 8, 8)}, "An input shape needs positive sizes"),
        ({"shape": (1, math.nan)}, "An input shape needs positive sizes"),
        ({"shape": ("3", 8)}, "An input shape needs positive sizes"),
        ({"shape": 3}, "An input shape needs positive sizes"),
        ({"mean": (math.nan,), "std": (1.0,)}, "mean needs finite numbers"),
        ({"mean": (0.0,), "std": (math.inf,)}, "std needs finite numbers"),
        ({"mean": 0.3, "std": 0.2}, r"mean needs finite numbers, got 0.3. Give e.g. \(0.5,\)"),
        ({"mean": (True,), "std": (1.0,)}, "mean needs finite numbers"),
        ({"value_range": (-math.inf, math.inf)}, "value_range needs finite numbers"),
        ({"value_range": (0, math.inf)}, "value_range needs finite numbers"),
        ({"value_range": (0, 1, 2)}, "value_range must be increasing"),
        ({"num_classes": -3}, "at least 2 class logits, got num_classes=-3"),
        ({"num_classes": 2.5}, "at least 2 class logits"),
        ({"num_classes": True}, "at least 2 class logits"),
    ],
)
def test_a_specification_holds_finite_numbers_and_whole_sizes(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        InputSpec(**{"shape": (1, 8, 8), **settings})
    if "num_classes" in settings:
        with pytest.raises(UsageError, match=message):
            NetworkSpec({"a": InputSpec((3,))}, **settings)


def test_numbers_of_other_libraries_become_plain_ones() -> None:
    spec = InputSpec(
        np.array([3, 8, 8]), np.full(3, 0.5, np.float32), torch.full((3,), 0.25), np.array([0, 1]), np.int64(4)
    )
    assert spec == InputSpec((3, 8, 8), (0.5,) * 3, (0.25,) * 3, (0.0, 1.0), 4)
    assert {type(value) for value in (*spec.shape, spec.num_classes)} == {int}
    assert {type(value) for value in (*spec.mean, *spec.std, *spec.value_range)} == {float}


@pytest.mark.parametrize(
    ("mean", "std", "standardized"),
    [
        *((0.1307, 0.3081, True), (0.2860, 0.3530, True), (0.1918, 0.3483, True), (0.1722, 0.3309, True)),
        *((0.3, 0.375, True), (0.485, 0.229, True), (0.5, 0.5, False), (0.0, 1.0, False), (0.5, 0.6, False)),
    ],
)
def test_a_std_that_data_in_the_range_can_have(mean: float, std: float, standardized: bool) -> None:
    for unit in (1.0, 255.0):
        spec = InputSpec((1, 28, 28), (mean * unit,), (std * unit,), (0.0, unit))
        assert spec.standardized == standardized


def test_gaussian_noise_has_the_mean_and_std_of_data_with_two_extremes() -> None:
    drawn = synthesize(digits_network(), DIGITS_SPEC, generator="gaussian", num_samples=64, options={"clamp": False})
    assert float(drawn.inputs().mean()) == pytest.approx(0.0, abs=0.05)
    assert float(drawn.inputs().std()) == pytest.approx(1.0, abs=0.05)


def test_a_budget_shares_what_is_lost_to_all_shards() -> None:
    assert TimeBudget(25.0, 0.0).after(1.0) == 0.0
    assert TimeBudget(5.0, 10.0).after(20.0) == 0.0
