"""Graphs whose placeholders are the inputs of a specification, and which take them as the network does."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import fx, nn

from dfq_plugins.inputs import blank_inputs
from dfq_plugins.network.graph_inputs import (
    in_order,
    input_nodes,
    ordered,
    take_inputs_as_given,
    take_inputs_in_order,
    with_placeholders,
)
from dfq_plugins.types import InputSpec
from networks_by_input import KINDS, example


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_has_a_placeholder_for_each_input_and_takes_them_as_the_network_does(kind: str) -> None:
    found = example(kind)
    graph = with_placeholders(found.network, found.spec)
    if graph is found.network:
        graph = fx.symbolic_trace(found.network)
    assert isinstance(graph, fx.GraphModule)
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
    graph = with_placeholders(found.network, found.spec, whole=("left",))
    assert isinstance(graph, fx.GraphModule)
    called = [str(node.target) for node in graph.graph.nodes if node.op == "call_module"]
    assert "left" in called
    assert "right" not in called


def test_a_network_with_one_parameter_is_left_as_it_is() -> None:
    found = example("table")
    assert with_placeholders(found.network, found.spec) is found.network
    assert isinstance(found.network, nn.Module)
    assert blank_inputs(found.spec, 3).shape == (3, 7)


class Dropping(nn.Module):
    """Computes a second head and drops its result."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.auxiliary = nn.Linear(4, 2), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, return_all: bool = False) -> torch.Tensor | tuple[torch.Tensor, ...]:
        outputs = self.main(x), self.auxiliary(x)
        return outputs if return_all else outputs[0]


def test_what_no_output_depends_on_is_not_in_the_graph() -> None:
    graph = with_placeholders(Dropping().eval(), InputSpec((4,)))
    assert isinstance(graph, fx.GraphModule)
    assert [name for name, _ in graph.named_children()] == ["main"]
