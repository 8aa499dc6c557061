"""Options records: conversion from text, rules, messages, descriptions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Gt, Interval, Len, Lt

from dfq_plugins.errors import UsageError
from dfq_plugins.host.options import OptionRow, describe_options, parse_options, type_text
from dfq_plugins.types import NoOptions


@dataclass(frozen=True)
class Options:
    iterations: Annotated[int, Gt(0)] = field(default=300, metadata={"help": "steps of the optimizer"})
    learning_rate: Annotated[float, Gt(0), Lt(10)] = 0.25
    compile: bool | None = None
    divergence: Literal["kl", "l2"] = "kl"
    budget: Annotated[float, Ge(0)] | None = None
    sizes: tuple[int, ...] = (3, 5)
    engine: str | None = "x86"
    weights: dict[str, float] = field(default_factory=dict)
    computed: int = field(init=False, default=0)


@dataclass(frozen=True)
class Picky:
    low: int = 0
    high: int = 1

    def __post_init__(self) -> None:
        if self.low == 13:
            raise UsageError("13 is unlucky.")
        if self.low > self.high:
            raise ValueError("low is above high")


@dataclass(frozen=True)
class Required:
    path: str


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("iterations", "300", 300),
        ("learning_rate", "0.5", 0.5),
        ("learning_rate", "1", 1.0),
        ("compile", "true", True),
        ("compile", "no", False),
        ("compile", "none", None),
        ("compile", "None", None),
        ("divergence", "l2", "l2"),
        ("budget", "none", None),
        ("budget", "2", 2.0),
        ("sizes", "1,2, 3", (1, 2, 3)),
        ("sizes", "7", (7,)),
        ("sizes", "", ()),
        ("engine", "none", None),
        ("engine", "qnnpack", "qnnpack"),
    ],
)
def test_text_from_a_command_line_is_converted(name: str, text: str, value: object) -> None:
    parsed = getattr(parse_options(Options, {name: text}), name)
    assert parsed == value
    assert type(parsed) is type(value)


def test_values_from_python_are_taken_as_they_are() -> None:
    parsed = parse_options(Options, {"iterations": 5, "weights": {"kl": 1.0}, "sizes": (1,)})
    assert (parsed.iterations, parsed.weights, parsed.sizes) == (5, {"kl": 1.0}, (1,))


def test_defaults_and_records() -> None:
    assert parse_options(Options) == Options()
    assert parse_options(Options, Options(iterations=3)) == Options(iterations=3)
    assert parse_options(NoOptions, {}) == NoOptions()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"iteration": 3},
            r"Unknown option 'iteration' of generator 'bns'. Did you mean 'iterations'\? Valid options: ",
        ),
        ({"computed": 3}, r"Unknown option 'computed' of generator 'bns'."),
        (
            {"iterations": "0"},
            r"of generator 'bns' cannot be '0': input should be greater than 0. Give int > 0; the default is 300",
        ),
        ({"iterations": "many"}, "cannot be 'many': input should be a valid integer"),
        ({"iterations": 2.5}, "cannot be 2.5: input should be a valid integer"),
        ({"iterations": "none"}, "cannot be 'none': "),
        ({"learning_rate": "10"}, "should be less than 10. Give float > 0 and < 10; the default is 0.25"),
        ({"learning_rate": "nan"}, "should be a finite number"),
        ({"learning_rate": float("inf")}, "should be a finite number"),
        ({"divergence": "js"}, "cannot be 'js': input should be 'kl' or 'l2'. Give kl or l2; the default is kl."),
        ({"compile": "perhaps"}, "Give bool or none; the default is none"),
        ({"sizes": "1,x"}, "Give tuple of int, ...; the default is 3,5"),
        (3, "The options of generator 'bns' must be a mapping or a Options, got int: 3"),
    ],
)
def test_a_wrong_option_names_option_value_and_rule(options: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_options(Options, options, owner="generator 'bns'")


def test_rules_between_options_keep_their_own_message() -> None:
    with pytest.raises(UsageError, match=r"^13 is unlucky\.$"):
        parse_options(Picky, {"low": 13, "high": 20})
    with pytest.raises(UsageError, match=r"The options of generator 'x' are inconsistent: low is above high."):
        parse_options(Picky, {"low": 3}, owner="generator 'x'")
    with pytest.raises(UsageError, match=r"are inconsistent: .*'path'"):
        parse_options(Required)


def test_descriptions_say_name_type_default_and_help() -> None:
    rows = {row.name: row for row in describe_options(Options)}
    assert rows["iterations"] == OptionRow("iterations", "int > 0", "300", "steps of the optimizer")
    assert {name: (row.type, row.default) for name, row in rows.items() if name != "iterations"} == {
        "learning_rate": ("float > 0 and < 10", "0.25"),
        "compile": ("bool or none", "none"),
        "divergence": ("kl or l2", "kl"),
        "budget": ("float >= 0 or none", "none"),
        "sizes": ("tuple of int, ...", "3,5"),
        "engine": ("str or none", "x86"),
        "weights": ("dict", "{}"),
    }
    assert describe_options(NoOptions) == ()
    assert describe_options(Required)[0].default == "required"


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        (Annotated[float, Interval(ge=0, le=1)], "float >= 0 and <= 1"),
        (Annotated[tuple[int, ...], Len(2, 4)], "tuple of int, ... with at least 2 items and with at most 4 items"),
        (Annotated[int, "a note"], "int"),
        (list[str], "list of str"),
    ],
)
def test_type_text(hint: Any, text: str) -> None:
    assert type_text(hint) == text
