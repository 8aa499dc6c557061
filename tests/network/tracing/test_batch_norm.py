"""BatchNorm is folded into every kind of layer with weights, and stays where there is none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from dfq_plugins.network.fit import fitted_copy
from dfq_plugins.network.tracing.batch_norm import fold_batch_norms
from dfq_plugins.network.tracing.trace import trace
from dfq_plugins.types import InputSpec

if TYPE_CHECKING:
    from collections.abc import Callable

SPEC = InputSpec((4, 8, 8))


def trained(norm: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    norm.running_mean = torch.randn(norm.num_features, generator=generator)
    norm.running_var = 0.1 + torch.rand(norm.num_features, generator=generator)
    return norm


class Joined(nn.Module):
    """A BatchNorm behind the concatenation of two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 6, 3, padding=1)
        self.norm = trained(nn.BatchNorm2d(8, eps=0.01))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.norm(torch.cat([self.one(inputs), self.other(inputs)], dim=1))


class SharedHead(nn.Module):
    """A convolution for two levels, each with a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.near, self.far = nn.Conv2d(4, 4, 1), trained(nn.BatchNorm2d(4)), trained(nn.BatchNorm2d(4))
        nn.init.constant_(self.far.running_var, 9.0)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.near(self.head(inputs)) + self.far(self.head(2 * inputs))


FOLDED: dict[str, Callable[[], nn.Module]] = {
    "convolution": lambda: nn.Sequential(nn.Conv2d(4, 6, 3), trained(nn.BatchNorm2d(6))),
    "without a bias": lambda: nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), trained(nn.BatchNorm2d(6))),
    "depthwise": lambda: nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), trained(nn.BatchNorm2d(4))),
    "transposed": lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3), trained(nn.BatchNorm2d(6))),
    "grouped transposed": lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 2, groups=2), trained(nn.BatchNorm2d(6))),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(256, 6), trained(nn.BatchNorm1d(6))),
    "two in a row": lambda: nn.Sequential(
        nn.Conv2d(4, 6, 3), trained(nn.BatchNorm2d(6)), trained(nn.BatchNorm2d(6, affine=False))
    ),
    "behind a concatenation": Joined,
    "one for each call": SharedHead,
}


@pytest.mark.parametrize("name", FOLDED)
@torch.no_grad()
def test_folded_networks_compute_the_same(name: str) -> None:
    network = FOLDED[name]().eval()
    graph = trace(fitted_copy(network), SPEC)
    fold_batch_norms(graph)
    inputs = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(graph(inputs), network(inputs), rtol=1e-4, atol=1e-5)
    called = [graph.get_submodule(str(node.target)) for node in graph.graph.nodes if node.op == "call_module"]
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in called)


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.BatchNorm2d(6)),
        nn.Sequential(nn.Flatten(2), nn.Linear(64, 4), nn.BatchNorm1d(4)),  # normalizes the channels, not the features
    ],
)
@torch.no_grad()
def test_a_batch_norm_that_belongs_to_no_layer_stays(network: nn.Sequential) -> None:
    trained(network[2])
    graph = trace(fitted_copy(network.eval()), SPEC)
    fold_batch_norms(graph)
    inputs = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(graph(inputs), network(inputs), rtol=1e-4, atol=1e-5)
    assert any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in graph.modules())
