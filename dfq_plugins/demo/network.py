"""A small conv-BatchNorm classifier of 8x8 handwritten digits, shipped with trained weights."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from dfq_plugins.types import InputSpec

DIGITS_SPEC = InputSpec(shape=(1, 8, 8), mean=(0.3,), std=(0.375,), value_range=(0.0, 1.0), num_classes=10)
"""Input of the digits network: gray values from 0 to 1, near zero mean and unit variance after normalization."""

WEIGHTS = Path(__file__).with_name("digits.safetensors")
"""Trained weights with unfolded BatchNorm; written by `python -m dfq_plugins.demo.train`."""


def convolution(inputs: int, outputs: int, size: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Return a convolution without bias, followed by BatchNorm."""
    layer = nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


class DigitsNetwork(nn.Module):
    """Five conv-BatchNorm layers, one of them depthwise and one inside a residual add, and a linear classifier.

    The depthwise layer and the add represent the difficulties of quantizing larger networks: channels of very different
    range under one scale, and the addition of two different ranges.

    Args:
        width: number of channels before the stride; doubled after it.
    """

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem = convolution(1, width, 3)
        self.stem_relu = nn.ReLU()
        self.depthwise = convolution(width, width, 3, groups=width)
        self.depthwise_relu = nn.ReLU()
        self.pointwise = convolution(width, width, 1)
        self.add_relu = nn.ReLU()
        self.reduce = convolution(width, 2 * width, 3, stride=2)
        self.reduce_relu = nn.ReLU()
        self.last = convolution(2 * width, 2 * width, 3)
        self.last_relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(2 * width, 10)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return class logits `(batch, 10)` for normalized digits `(batch, 1, 8, 8)`."""
        stem = self.stem_relu(self.stem(inputs))  # (batch, width, 8, 8)
        branch = self.pointwise(self.depthwise_relu(self.depthwise(stem)))
        hidden = self.reduce_relu(self.reduce(self.add_relu(stem + branch)))  # (batch, 2 * width, 4, 4)
        logits: torch.Tensor = self.classifier(self.flatten(self.pool(self.last_relu(self.last(hidden)))))
        return logits


def small_digits_network() -> DigitsNetwork:
    """Return an untrained network with a ninth of the weights, as a student for distillation."""
    return DigitsNetwork(width=8)


def digits_network() -> DigitsNetwork:
    """Return the trained digits network in eval mode.

    >>> digits_network()(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """
    with torch.device("meta"):  # leaves the global random state alone
        network = DigitsNetwork()
    network.load_state_dict(load_file(WEIGHTS), assign=True)
    return network.eval()
