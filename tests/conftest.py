"""Fixtures that many tests share: a tiny trained-looking network and, where it is there, the real data pack."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from dfq_plugins.types import InputSpec


class TinyNetwork(nn.Module):
    """Two conv-BatchNorm-ReLU layers with a residual add, average pooling and a linear classifier."""

    def __init__(self, channels: int = 3, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 8, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.relu1 = nn.ReLU()
        self.relu2 = nn.ReLU()
        self.linear = nn.Linear(8, classes)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.relu1(self.norm1(self.stem(inputs)))
        hidden = self.relu2(self.norm2(self.conv(hidden)) + hidden)
        return self.linear(hidden.mean((2, 3)))


def settle_batch_norm(network: nn.Module, inputs: torch.Tensor) -> nn.Module:
    """Give every BatchNorm the statistics of `inputs`, so that the network looks trained."""
    network.train()
    with torch.no_grad():
        for _ in range(60):
            network(inputs)
    return network.eval()


@pytest.fixture
def tiny_spec() -> InputSpec:
    return InputSpec((3, 8, 8), mean=(0.5,) * 3, std=(0.25,) * 3, value_range=(0.0, 1.0), num_classes=4)


@pytest.fixture
def tiny_network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = TinyNetwork()
        return settle_batch_norm(network, torch.randn(64, 3, 8, 8).clamp(-2, 2))


@pytest.fixture
def tiny_batches() -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    return [torch.randn(16, 3, 8, 8, generator=rng).clamp(-2, 2) for _ in range(3)]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real networks and images, or a skip where it is not there."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (folder / "networks.py").is_file():
        pytest.skip("the data pack (../shared/data) is not on this machine")
    return folder
