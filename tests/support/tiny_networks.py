"""A tiny network that looks trained."""

from __future__ import annotations

import math

import torch
from torch import nn


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


class TiedNetwork(TinyNetwork):
    """The second convolution is applied again as a third one with the same weight, and BatchNorm follows only one."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.again.weight = self.conv.weight

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.relu1(self.norm1(self.stem(inputs)))
        hidden = self.relu2(self.norm2(self.conv(hidden)))
        return self.linear(self.again(hidden).relu().mean((2, 3)))


def settle_batch_norm(network: nn.Module, inputs: torch.Tensor) -> nn.Module:
    """Give every BatchNorm the statistics of `inputs`, so that the network looks trained."""
    network.train()
    with torch.no_grad():
        for _ in range(60):
            network(inputs)
    return network.eval()


def nan_weights(network: nn.Module) -> nn.Module:
    network.conv.weight.data[0] = math.nan
    return network


def other_channels(network: nn.Module) -> nn.Module:
    network.stem = nn.Conv2d(1, 8, 3, padding=1)
    return network
