"""Outputs by name: any structure, what is trained on, which of them hold classes, and the structure back."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from dfq_plugins.errors import ModelError
from dfq_plugins.network.outputs import (
    class_scores,
    kind_of,
    matching_outputs,
    named_outputs,
    nested_outputs,
    sample_outputs,
)
from dfq_plugins.network.tracing.trace import trace
from dfq_plugins.types import InputSpec
from output_networks import NAMES, Pair, Record, output_network, output_samples

A, B = torch.zeros(2, 5), torch.ones(2, 3)


class Mine(dict[str, Any]):
    """A dictionary that torch does not know."""


class Row(list[Any]):
    """A list that torch does not know."""


@dataclass
class Outer:
    """A record of a record, as transformer libraries return."""

    loss: None
    inner: Record
    hidden: tuple[Tensor, ...]


@pytest.mark.parametrize(
    ("returned", "names"),
    [
        (A, ["output"]),
        ((A,), ["0"]),
        ([A, (B, [A])], ["0", "1.0", "1.1.0"]),
        ({"out": A, "aux": B}, ["out", "aux"]),
        ({0: A, "b": {"c": B}}, ["0", "b.c"]),
        (OrderedDict(out=A), ["out"]),
        (defaultdict(list, out=A), ["out"]),
        (Mine(out=A, parts=Row([B, A])), ["out", "parts.0", "parts.1"]),
        (Pair(A, B), ["main", "aux"]),
        (Record(A, B), ["scores", "boxes"]),
        (Outer(None, Record(A, B), (A, B)), ["inner.scores", "inner.boxes", "hidden.0", "hidden.1"]),
        ([0.5, None, "text", A, {"n": 3}], ["3"]),
        (torch.max(B, 1), ["values", "indices"]),
        ((), []),
        (None, []),
    ],
)
def test_every_tensor_is_named_by_the_path_to_it(returned: Any, names: list[str]) -> None:
    found = named_outputs(returned)
    assert [*found] == names or sorted(found) == ["0", "1"]  # torch's own results have positions in old versions
    assert all(isinstance(tensor, Tensor) for tensor in found.values())


def test_two_outputs_of_one_path_are_refused() -> None:
    with pytest.raises(ModelError, match=r"must differ, but two are 'a\.b'"):
        named_outputs({"a.b": A, "a": {"b": B}})


def test_integers_and_constants_are_not_trained_on() -> None:
    returned = {"out": A, "best": A.argmax(1), "mask": A > 0, "anchors": torch.zeros(7, 4), "scale": torch.ones(())}
    assert [*sample_outputs(returned, 2)] == ["out"]
    with pytest.raises(ModelError, match=r"for 2 samples it returns best \(2,\) torch\.int64\. Wrap it"):
        sample_outputs({"best": A.argmax(1)}, 2)
    with pytest.raises(ModelError, match="for 2 samples it returns NoneType"):
        sample_outputs(None, 2)


@pytest.mark.parametrize(
    ("shape", "classes", "kind"),
    [
        ((2, 5), 5, "classes"),
        ((2, 5), None, "values"),
        ((2, 5), 0, "values"),
        ((2, 5), 4, "values"),
        ((2,), 2, "values"),
        ((5,), 5, "values"),
        ((2, 1), 2, "values"),
        ((2, 5, 4, 3), 5, "class map"),
        ((2, 5, 9), 5, "class map"),
        ((2, 9, 5), 5, "class map"),
        ((2, 4, 3, 5), 5, "class map"),
        ((5, 4, 3), 5, "values"),
    ],
)
def test_classes_are_those_that_were_said(shape: tuple[int, ...], classes: int | None, kind: str) -> None:
    assert kind_of(torch.zeros(shape), classes) == kind


def test_rows_of_a_map_are_its_positions() -> None:
    maps = torch.randn(2, 5, 4, 3)
    expected = maps.permute(0, 2, 3, 1).reshape(-1, 5)
    assert torch.equal(class_scores(maps, 5), expected)
    assert torch.equal(class_scores(maps.movedim(1, -1), 5), expected)


def test_what_only_training_returns_is_left_out() -> None:
    assert matching_outputs({"out": A, "aux": B}, {"out": A})["out"] is A
    assert matching_outputs(Pair(A, B), {"output": A})["output"] is A
    assert matching_outputs((B, A), {"output": A})["output"] is A
    for returned in ((B,), {"aux": A}, torch.zeros(2, 4)):
        with pytest.raises(ModelError, match=r"must return the same outputs, got out \(5,\), other \(3,\) values"):
            matching_outputs(returned, {"out": A, "other": B})


@pytest.mark.parametrize(
    "returned", [A, (A,), (A, (B, A)), {"out": A}, {"heads": (A, {"x": B}), "map": A}, ({"a": A}, B)]
)
def test_the_structure_comes_back_from_the_names(returned: Any) -> None:
    def same(one: Any, other: Any) -> bool:
        if isinstance(one, Tensor):
            return one is other
        keys = range(len(one)) if isinstance(one, tuple) else one
        return type(one) is type(other) and len(one) == len(other) and all(same(one[key], other[key]) for key in keys)

    assert same(nested_outputs(named_outputs(returned)), returned)


@pytest.mark.parametrize("kind", NAMES)
def test_graphs_return_the_outputs_under_their_paths(kind: str) -> None:
    network, inputs = output_network(kind), output_samples(2)
    graph = trace(copy.deepcopy(network).eval(), InputSpec(tuple(inputs.shape[1:])))
    expected, found = named_outputs(network.eval()(inputs)), named_outputs(graph(inputs))
    assert [*expected] == [*found] == NAMES[kind]
    for name, output in expected.items():
        torch.testing.assert_close(found[name], output)
    assert isinstance(graph(inputs), (Tensor, tuple, list, dict))
