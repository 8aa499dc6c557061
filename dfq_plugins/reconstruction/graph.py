"""The prepared network as a flat graph, and how parts of it are run."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from dfq_plugins.errors import ModelError
from dfq_plugins.network.tracing.trace import trace

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import nn
    from torch.fx import Node

    from dfq_plugins.types import QuantizedView, Specification

_ORIGIN = "_dfq_origin"
_PROBES = (2, 3)
"""Batch sizes of the trial runs: what differs between them follows the batch."""


def flat_graph(prepared: nn.Module, view: QuantizedView, spec: Specification) -> fx.GraphModule:
    """Return a graph that calls each of the network's quantized layers directly; it shares these layers with it.

    Raises:
        ModelError: the network cannot be traced.
    """
    if view.graph is not None:
        return view.graph
    with view.floating():
        private = copy.deepcopy(prepared)
    for layer in view.layers:
        setattr(private.get_submodule(layer.name), _ORIGIN, layer.name)
    names = {layer.name for layer in view.layers}
    try:
        graph = trace(private, spec, opaque=names)
    except ModelError as error:
        raise ModelError(
            f"reconstruct needs the network's graph, to find its blocks. {error} Or omit reconstruct."
        ) from error
    for node in graph.graph.nodes:
        origin = vars(graph.get_submodule(node.target)).get(_ORIGIN) if node.op == "call_module" else None
        if origin is not None:  # also for the twin of a layer that is called again
            graph.set_submodule(node.target, prepared.get_submodule(origin))
    return graph


class GraphRunner:
    """Runs parts of a graph.

    A node is *data* if it computes tensors from the network's inputs or calls a module, and *context* if it computes
    sizes of data, or what depends only on sizes and constants. Context is the same for all batches of a size.

    Args:
        graph: a flat graph.
        view: the quantizers of the network.
        samples: example inputs, `(3, *shape)` each, in the order of the placeholders.
    """

    def __init__(self, graph: fx.GraphModule, view: QuantizedView, samples: Iterable[Tensor]) -> None:
        self._graph = graph
        self._interpreter = fx.Interpreter(graph, garbage_collect_values=False)
        self.plain = view.plain
        self.nodes: dict[str, Node] = {node.name: node for node in graph.graph.nodes}
        self.placeholders = [node.name for node in graph.graph.nodes if node.op == "placeholder"]
        inputs = [tensor[: max(_PROBES)] for tensor in samples]
        self.values, other = (
            {name: values[node] for name, node in self.nodes.items() if node in values}
            for values in (self._whole([tensor[:batch] for tensor in inputs]) for batch in _PROBES)
        )
        self.shapes = {name: self._shape(self.values[name], other[name]) for name in self.values}
        self.data = self._data()
        self.order = self._order()
        self._contexts: dict[int, dict[Node, Any]] = {}

    @property
    def outputs(self) -> list[str]:
        """The names of the nodes that the network returns."""
        output = next(node for node in self.nodes.values() if node.op == "output")
        return [node.name for node in output.all_input_nodes]

    def module(self, node: Node) -> nn.Module:
        """Return the module that a node calls."""
        return self._graph.get_submodule(str(node.target))

    def is_stored(self, name: str) -> bool:
        """Return whether a node's value is one floating-point tensor whose first axis is the batch."""
        return self.shapes.get(name) is not None

    def values_in(self, name: str) -> int:
        """Return the number of values in one sample of a stored node."""
        return math.prod(self.shapes[name] or ())

    def run(self, names: Iterable[str], given: Mapping[str, Any]) -> dict[str, Any]:
        """Run nodes in order, and return the values of all nodes by name.

        Args:
            names: the nodes.
            given: the values that they need and that are data.
        """
        batch = len(next(iter(given.values())))
        env = {**self._context(batch), **{self.nodes[name]: value for name, value in given.items()}}
        self._interpreter.env = env
        for name in names:
            env[self.nodes[name]] = self._interpreter.run_node(self.nodes[name])
        self._interpreter.env = {}
        return {node.name: value for node, value in env.items()}

    @torch.no_grad()
    def _whole(self, inputs: list[Tensor]) -> dict[Node, Any]:
        given = dict(zip(self.placeholders, inputs, strict=False))
        env: dict[Node, Any] = {self.nodes[name]: value for name, value in given.items()}
        self._interpreter.env = env
        for node in self.nodes.values():
            if node.op not in ("placeholder", "output"):
                env[node] = self._interpreter.run_node(node)
        self._interpreter.env = {}
        return env

    def _shape(self, first: Any, second: Any) -> tuple[int, ...] | None:
        one, other = self.plain(first), self.plain(second)
        if not isinstance(one, Tensor) or not one.is_floating_point() or not one.ndim:
            return None
        follows = (one.shape[0], other.shape[0]) == _PROBES and one.shape[1:] == other.shape[1:]
        return tuple(one.shape[1:]) if follows else None

    def _data(self) -> set[str]:
        found: set[str] = set(self.placeholders)
        for name, value in self.values.items():
            node = self.nodes[name]
            read = [source.name for source in node.all_input_nodes if source.name in found]
            sized = all(self.shapes[source] is not None for source in read)
            is_size = sized and not _holds_tensors(self.plain(value))
            # A quantizer of a constant is learned, too.
            if (read and not is_size) or node.op == "call_module":
                found.add(name)
        return found

    def _order(self) -> list[str]:
        """Return the names of the computed data in order, with what depends only on constants as late as possible."""
        found: dict[str, None] = {}
        from_inputs = set(self.placeholders)

        def add(node: Node) -> None:
            for source in node.all_input_nodes:
                if source.name in self.data and source.name not in found and source.name not in from_inputs:
                    add(source)
            found[node.name] = None

        for name in (name for name in self.values if name in self.data and self.nodes[name].op != "placeholder"):
            if any(source.name in from_inputs for source in self.nodes[name].all_input_nodes):
                add(self.nodes[name])
                from_inputs.add(name)
        return list(found)

    def _context(self, batch: int) -> dict[Node, Any]:
        """Return the values of all nodes that are context, for a batch size."""
        if batch not in self._contexts:
            env: dict[Node, Any] = {}
            self._interpreter.env = env
            for name in self.values:
                if name in self.data:
                    continue
                node = self.nodes[name]
                for source in node.all_input_nodes:
                    shape = self.shapes[source.name] if source.name in self.data else None
                    if shape is not None:
                        env[source] = torch.empty(batch, *shape, device="meta")
                env[node] = self._interpreter.run_node(node)
            self._interpreter.env = {}
            self._contexts[batch] = {node: value for node, value in env.items() if node.name not in self.data}
        return self._contexts[batch]


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        return any(map(_holds_tensors, value))
    return any(map(_holds_tensors, value.values())) if isinstance(value, dict) else isinstance(value, Tensor)
