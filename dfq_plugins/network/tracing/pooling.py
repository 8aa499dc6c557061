"""Adaptive average pooling to sizes that do not divide the input's, as products with constant matrices.

ONNX has no operator for it. In a traced graph the sizes are known.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from dfq_plugins.network.tracing.operation import SHAPE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.fx import GraphModule, Node

_MODULES: dict[Any, int] = {nn.AdaptiveAvgPool1d: 1, nn.AdaptiveAvgPool2d: 2, nn.AdaptiveAvgPool3d: 3}
_FUNCTIONS: dict[Any, int] = {
    torch.adaptive_avg_pool1d: 1,
    functional.adaptive_avg_pool2d: 2,
    functional.adaptive_avg_pool3d: 3,
}


def write_uneven_pools(graph: GraphModule) -> None:
    """Replace, in place, each adaptive average pooling whose output sizes do not all divide its input sizes."""
    for node in list(graph.graph.nodes):
        pooled = _pooled_sizes(graph, node)
        if pooled is None:
            continue
        with graph.graph.inserting_before(node):
            result = _by_matrices(graph, node, *pooled)
        result.meta.update(node.meta)
        node.replace_all_uses_with(result)
        graph.graph.erase_node(node)
    graph.delete_all_unused_submodules()
    graph.graph.lint()
    graph.recompile()


def _pooled_sizes(graph: GraphModule, node: Node) -> tuple[list[int], list[int]] | None:
    """Return the sizes of the pooled axes before and after; None if an ordinary pooling does it."""
    if node.op == "call_module":
        module: Any = graph.get_submodule(str(node.target))
        axes: int | None = _MODULES.get(type(module))
        asked: Any = getattr(module, "output_size", None)
    elif node.op == "call_function" and node.target in _FUNCTIONS:
        axes = _FUNCTIONS[node.target]
        asked = node.args[1] if len(node.args) > 1 else node.kwargs.get("output_size")
    else:
        return None
    shape = getattr(node.args[0], "meta", {}).get(SHAPE) if node.args else None
    if axes is None or shape is None:
        return None
    before = list(shape[-axes:])
    wanted = [asked] * axes if isinstance(asked, int) else list(asked)
    after = [size if output is None else int(output) for size, output in zip(before, wanted, strict=True)]
    even = all(size % output == 0 for size, output in zip(before, after, strict=True))
    return None if even else (before, after)


def _by_matrices(graph: GraphModule, node: Node, before: Sequence[int], after: Sequence[int]) -> Node:
    result: Any = node.args[0]
    for axis, (size, output) in enumerate(zip(reversed(before), reversed(after), strict=True), start=1):
        if size == output:
            continue
        name = f"{node.name}_averages_{axis}"
        graph.register_buffer(name, averaging_matrix(size, output))
        matrix = graph.graph.get_attr(name)
        if axis > 1:
            result = graph.graph.call_function(torch.transpose, (result, -axis, -1))
        result = graph.graph.call_function(operator.matmul, (result, matrix))
        if axis > 1:
            result = graph.graph.call_function(torch.transpose, (result, -axis, -1))
    return result  # type: ignore[no-any-return]


def averaging_matrix(size: int, output_size: int) -> torch.Tensor:
    """Return the matrix `(size, output_size)` that averages each of torch's windows.

    Window `i` reaches from `floor(i * size / output_size)` to `ceil((i + 1) * size / output_size)`.

    >>> averaging_matrix(3, 2).tolist()
    [[0.5, 0.0], [0.5, 0.5], [0.0, 0.5]]
    """
    matrix = torch.zeros(size, output_size)
    for window in range(output_size):
        start, stop = window * size // output_size, -(-(window + 1) * size // output_size)
        matrix[start:stop, window] = 1 / (stop - start)
    return matrix
