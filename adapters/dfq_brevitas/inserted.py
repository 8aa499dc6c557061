"""Records where Brevitas inserted its quantizers, so that later passes can use the place instead of the name."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from dfq_brevitas.framework import quant_nn

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from dfq_brevitas.framework import GraphModule, Node

_META_KEY = "dfq_brevitas_place"


class Place(Enum):
    """Where an inserted quantizer is; the value is the name suffix that Brevitas uses."""

    LAYER_INPUT = "_input_quant"
    """In front of a layer whose input is not quantized otherwise."""
    SUM_OUTPUT = "_output_quant"
    """After an addition, a concatenation, or a layer whose output must be quantized."""


def remember_places(graph: GraphModule, former: Collection[str]) -> None:
    """Record in each inserted quantizer's node where it is. Only this function reads Brevitas's names.

    Args:
        graph: the graph returned by Brevitas's `quantize`; changed in place.
        former: names of the modules that existed before.
    """
    for node in graph.graph.nodes:
        new = node.op == "call_module" and node.target not in former
        if new and isinstance(graph.get_submodule(str(node.target)), quant_nn.QuantIdentity):
            node.meta[_META_KEY] = next((place for place in Place if node.name.endswith(place.value)), None)


def place_of(node: Node) -> Place | None:
    """Return where an inserted quantizer is; None for every other node."""
    place: Place | None = node.meta.get(_META_KEY)
    return place


def inserted_at(graph: GraphModule, place: Place) -> Iterator[Node]:
    """Yield the nodes that call the quantizers inserted at a place."""
    yield from (node for node in list(graph.graph.nodes) if place_of(node) is place)
