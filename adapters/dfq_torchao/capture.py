"""Captures a traced network as a graph of torch.export, in the form that PT2E quantizers recognize.

The host's tracer has decided everything that Python decides and given each call its own module, so torch.export meets
no branch, and no layer is called twice: quantizers cannot tell the calls of one module apart.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch.utils import _pytree as pytree  # torch.utils.pytree is not public yet

from dfq_plugins.inputs import moved, random_inputs
from dfq_plugins.model_state import device_of
from dfq_plugins.network.graph_inputs import ordered
from dfq_plugins.network.tracing.operation import PLACES, Place
from dfq_torchao.operations import ACTIVATIONS, LAYERS, is_computation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch.fx import GraphModule, Node

    from dfq_plugins.types import Specification

ORIGIN = "dfq_origin"
"""Key in the `meta` of an exported node: the name of the float network's layer that it computes."""

_SAMPLES = 2
"""Samples to export with: one would be taken for a fixed size."""
_ADDITIONS = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor)


def batch_size() -> Any:
    """Return the dynamic size of the batch."""
    return torch.export.Dim("batch", min=1)


def capture(traced: GraphModule, spec: Specification) -> GraphModule:
    """Return the graph of a traced network in torch's `aten` operations, for any batch size.

    It takes the same arguments, and returns the same structure.

    Args:
        traced: the graph of the host's tracer, a private copy in eval mode.
        spec: its inputs.
    """
    inputs = ordered(moved(random_inputs(spec, _SAMPLES), device_of(traced)))
    batch = batch_size()
    program = torch.export.export(traced, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs))
    graph: GraphModule = program.module(check_guards=False)
    with_plain_calls(graph)
    _note_origins(graph, traced)
    for node in graph.graph.nodes:
        _mark_source(node)
    return graph


def with_plain_calls(graph: GraphModule) -> None:
    """Let an exported graph take its inputs in order or by keyword, and switch its mode like other modules; in place.

    torch.export flattens the outputs, checks the inputs in a hook, and forbids `train` and `eval`.
    """
    codegen: Any = graph.graph._codegen  # noqa: SLF001  no public name
    structure = codegen.pytree_info.out_spec
    output = graph.graph.output_node()
    flat: Any = output.args[0]
    output.args = (pytree.tree_unflatten(flat, structure),)
    graph.graph.set_codegen(fx.graph.CodeGen())
    graph._forward_pre_hooks.clear()  # noqa: SLF001  as above
    graph.recompile()
    allow_modes(graph)


def allow_modes(graph: GraphModule) -> GraphModule:
    """Take back that `train` and `eval` raise an error, in place. They set flags; the graph computes the same."""
    for name in ("train", "eval"):
        vars(graph).pop(name, None)
    return graph


def origin_of(node: Node) -> str:
    """Return the name of the float network's layer that a node computes; empty if it is none."""
    return str(node.meta.get(ORIGIN, ""))


def module_at(graph: GraphModule) -> Callable[[str], str]:
    """Return a function from the name of a node or module to that of the float network's submodule, or to ""."""
    places: Mapping[str, Place] = graph.meta.get(PLACES, {})
    return lambda name: places[name].module if name in places else ""


def _note_origins(graph: GraphModule, traced: GraphModule) -> None:
    """Note the layer that each node computes, and the line of the network's code that calls it."""
    known: Mapping[str, Place] = traced.meta.get(PLACES, {})
    lines = {
        str(node.target): known[node.name].line
        for node in traced.graph.nodes
        if node.op == "call_module" and node.name in known
    }
    computed = [node for node in graph.graph.nodes if is_computation(node)]
    owners = [_innermost(node) for node in computed]
    for node, owner in zip(computed, owners, strict=True):
        if owner and owners.count(owner) == 1:
            node.meta[ORIGIN] = owner
    graph.meta[PLACES] = {
        node.name: Place(owner, lines.get(owner, "")) for node, owner in zip(computed, owners, strict=True)
    }


def _innermost(node: Node) -> str:
    names = [str(name) for name, _ in (node.meta.get("nn_module_stack") or {}).values()]
    return next((name for name in reversed(names) if name), "")


def _mark_source(node: Node) -> None:
    """Note the module that a node stands for, as `torch.export` in strict mode does: fusions are found by it.

    Without it, quantizers recognize modules only, so `torch.relu` would not be a part of the convolution before it.
    """
    kind: Any = ACTIVATIONS.get(node.target) or LAYERS.get(node.target)
    if node.target in _ADDITIONS:
        two_tensors = all(isinstance(value, fx.Node) for value in node.args[:2])
        kind = operator.add if two_tensors else node.target
    if kind is not None:
        node.meta["source_fn_stack"] = [(node.name, kind)]
