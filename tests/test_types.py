"""The base classes of plugins: what a subclass must do, what it may do, and that a slip is noticed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from dfq_plugins.errors import PluginError
from dfq_plugins.types import Calibrator, DataGenerator, LearningGenerator, TimeBudget

if TYPE_CHECKING:
    import torch


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


def test_a_budget_shares_what_is_lost_to_all_shards() -> None:
    assert TimeBudget(25.0, 0.0).after(1.0) == 0.0
    assert TimeBudget(5.0, 10.0).after(20.0) == 0.0
