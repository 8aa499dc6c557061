"""Keeps torchao from folding the BatchNorms that are left: the host folded all that can be.

`prepare_pt2e` and `convert_pt2e` fold a BatchNorm into the convolution before it even if other operations read the
convolution's result, too. And `prepare_qat_pt2e` replaces the epsilon of a layer by 1e-5.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.fx import GraphModule

_BATCH_NORM = torch.ops.aten.batch_norm.default


def hidden_batch_norm(*arguments: Any) -> Any:
    """Compute `aten.batch_norm`, under a name that torchao does not look for."""
    return _BATCH_NORM(*arguments)


@contextmanager
def batch_norms_hidden(graph: GraphModule) -> Iterator[None]:
    """Within the block, no BatchNorm of the graph is recognized; show those of the result again with `show_again`."""
    _rename(graph, _BATCH_NORM, hidden_batch_norm)
    try:
        yield
    finally:
        show_again(graph)


def show_again(graph: GraphModule) -> None:
    """Call the BatchNorms of a graph by their own name again, in place."""
    _rename(graph, hidden_batch_norm, _BATCH_NORM)


def _rename(graph: GraphModule, former: Any, target: Any) -> None:
    for node in graph.graph.nodes:
        if node.target is former:
            node.target = target
    graph.recompile()
