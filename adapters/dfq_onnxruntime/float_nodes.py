"""Which nodes of a graph stay in float: those that the user names, and those with values that are not finite."""

from __future__ import annotations

import fnmatch
import re
from typing import TYPE_CHECKING, Any

from dfq_plugins.errors import UsageError, nearest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

_FUSED = re.compile(r"(/MatMulAddFusion|_\d+)$")


def module_name(node: str) -> str:
    """Return the name of the module that a node of an exported network belongs to; empty for the network itself.

    >>> module_name("/layer1/layer1.0/conv1/Conv"), module_name("/Flatten"), module_name("/fc/Gemm/MatMulAddFusion")
    ('layer1.0.conv1', '', 'fc')
    """
    parts: list[str] = []
    for part in _FUSED.sub("", node).strip("/").split("/")[:-1]:
        if parts and part.startswith(f"{parts[-1]}."):
            parts.pop()  # torch repeats a container's name before the name of its child
        parts.append(part)
    return ".".join(parts)


def named_float_nodes(graph: Any, names: Sequence[str]) -> tuple[str, ...]:
    """Return the nodes that the names and patterns of the user stand for.

    Args:
        graph: the `onnx.GraphProto`.
        names: names of modules, whose submodules are included, or of nodes, or patterns of either.

    Raises:
        UsageError: a name stands for no node.
    """
    nodes = {node.name: module_name(node.name) for node in graph.node}
    found: list[str] = []
    for name in names:
        fitting = [node for node, module in nodes.items() if _fits(name, node, module)]
        if not fitting:
            known = {*nodes, *nodes.values()} - {""}
            raise UsageError(
                f"float_nodes names modules or nodes of the graph, but nothing fits {name!r}.{nearest(name, known)} It "
                f"has e.g. {', '.join(sorted(known)[:5])}."
            )
        found += fitting
    return tuple(dict.fromkeys(found))


def _fits(name: str, node: str, module: str) -> bool:
    exact = name in (node, module) or module.startswith(f"{name}.")
    return exact or fnmatch.fnmatchcase(module, name) or fnmatch.fnmatchcase(node, name)


def nodes_touching(graph: Any, tensors: Collection[str]) -> tuple[str, ...]:
    """Return the nodes that read or write one of the tensors."""
    return tuple(node.name for node in graph.node if not set(tensors).isdisjoint((*node.input, *node.output)))


def output_tensors(graph: Any, producers: Collection[str], through: Collection[str]) -> Iterator[str]:
    """Yield the tensors that become the outputs of a graph, where an operator of `producers` computes them.

    Args:
        graph: the `onnx.GraphProto`.
        producers: operators whose results have no natural limits.
        through: operators that move values; the tensors in front of them are yielded as well.
    """
    by_output = {output: node for node in graph.node for output in node.output}
    for value in graph.output:
        moved, name = [value.name], value.name
        while name in by_output and by_output[name].op_type in through:
            name = by_output[name].input[0]
            moved.append(name)
        if name in by_output and by_output[name].op_type in producers:
            yield from moved
