"""Graphs whose placeholders are the inputs of a specification, and which take them as the network does."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import fx, nn

from dfq_plugins.network.graph_inputs import (
    in_order,
    input_nodes,
    ordered,
    take_inputs_as_given,
    take_inputs_in_order,
)
from dfq_plugins.network.tracing.trace import trace
from dfq_plugins.types import InputSpec, NetworkSpec
from networks_by_input import KINDS, example


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_has_a_placeholder_for_each_input_and_takes_them_as_the_network_does(kind: str) -> None:
    found = example(kind)
    graph = trace(copy.deepcopy(found.network), found.spec)
    assert len([node for node in graph.graph.nodes if node.op == "placeholder"]) == len(found.spec.named)
    assert [one for _, one in input_nodes(graph, found.spec)] == list(found.spec.named.values())
    take_inputs_as_given(graph, found.spec)
    inputs = found.random(2)
    expected = found.outputs(found.network, inputs)
    for network in (graph, copy.deepcopy(graph)):
        assert torch.equal(found.outputs(network, inputs), expected)
    run = fx.Interpreter(graph).run(*ordered(inputs), enable_io_processing=False)
    assert torch.equal(run, expected)
    take_inputs_in_order(graph)
    assert torch.equal(in_order(found.spec).run(graph, inputs), expected)


def test_named_modules_stay_whole() -> None:
    found = example("two images")
    graph = trace(copy.deepcopy(found.network), found.spec, opaque=("left",))
    called = [str(node.target) for node in graph.graph.nodes if node.op == "call_module"]
    assert "left" in called
    assert "right" not in called


def test_a_single_input_keeps_the_name_of_the_parameter() -> None:
    graph = trace(nn.Sequential(nn.Linear(4, 2)).eval(), InputSpec((4,)))
    assert torch.equal(graph(input=torch.ones(1, 4)), graph(torch.ones(1, 4)))


class Entries(nn.Module):
    """Takes a dictionary whose keys are no identifiers, and two of which differ only in a sign."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(4, 2) for _ in range(3))

    def forward(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.first(features["a-b"]) + self.second(features["a.b"]) - self.third(features["from"])


def test_entries_of_a_dictionary_may_have_names_that_python_does_not_take() -> None:
    spec = NetworkSpec(dict.fromkeys(("a-b", "a.b", "from"), InputSpec((4,))), call="dictionary")
    network, inputs = Entries().eval(), {name: torch.randn(3, 4) for name in spec.order}
    expected = spec.run(network, inputs)
    graph = trace(copy.deepcopy(network), spec)
    take_inputs_as_given(graph, spec)
    assert torch.allclose(spec.run(graph, inputs), expected)


class Dropping(nn.Module):
    """Computes a second head and drops its result."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.auxiliary = nn.Linear(4, 2), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, return_all: bool = False) -> torch.Tensor | tuple[torch.Tensor, ...]:
        outputs = self.main(x), self.auxiliary(x)
        return outputs if return_all else outputs[0]


def test_what_no_output_depends_on_is_not_in_the_graph() -> None:
    graph = trace(Dropping().eval(), InputSpec((4,)))
    assert [name for name, _ in graph.named_children()] == ["main"]
