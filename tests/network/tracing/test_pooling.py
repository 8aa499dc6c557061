"""Adaptive pooling to any size is computed with operators that every exporter knows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dfq_plugins.network.fit import fitted_copy
from dfq_plugins.network.tracing.pooling import write_uneven_pools
from dfq_plugins.network.tracing.trace import trace
from dfq_plugins.types import InputSpec


@pytest.mark.parametrize(
    ("pool", "shape"),
    [
        (nn.AdaptiveAvgPool2d(6), (2, 13, 13)),
        (nn.AdaptiveAvgPool2d((7, None)), (2, 3, 5)),
        (nn.AdaptiveAvgPool2d(6), (2, 1, 1)),
        (nn.AdaptiveAvgPool1d(4), (2, 7)),
        (nn.AdaptiveAvgPool3d((2, 3, 4)), (2, 5, 5, 5)),
    ],
)
@torch.no_grad()
def test_uneven_pools_become_matrix_products(pool: nn.Module, shape: tuple[int, ...]) -> None:
    network = nn.Sequential(nn.ReLU(), pool)
    graph = trace(fitted_copy(network), InputSpec(shape))
    write_uneven_pools(graph)
    inputs = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(graph(inputs), network(inputs))
    assert type(pool) not in map(type, graph.modules())


def test_even_pools_stay() -> None:
    graph = trace(fitted_copy(nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(3))), InputSpec((2, 6, 6)))
    write_uneven_pools(graph)
    assert [node.target for node in graph.graph.nodes if node.op == "call_module"] == ["0", "1"]
