"""Remembers where Brevitas inserted its quantizers: the passes after it ask for the place, not for names."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from dfq_brevitas.framework import quant_nn

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from dfq_brevitas.framework import GraphModule, Node

_META_KEY = "dfq_brevitas_place"


class Place(Enum):
    """Where an inserted quantizer is; the value is the suffix that Brevitas gives its name."""

    LAYER_INPUT = "_input_quant"
    """In front of a layer whose input nothing else quantizes."""
    SUM_OUTPUT = "_output_quant"
    """Behind an addition, a concatenation, or a layer whose output must be quantized."""


def remember_places(graph: GraphModule, former: Collection[str]) -> None:
    """Note in each inserted quantizer's node where it is. This is the one place that reads Brevitas's names.

    Args:
        graph: what Brevitas's `quantize` returned; changed in place.
        former: names of the modules that were there before.
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
    """Yield the calls of the quantizers that were inserted at a place."""
    yield from (node for node in list(graph.graph.nodes) if place_of(node) is place)
