"""Torchvision's networks with random weights, for measurements of time; used by both sides of a comparison."""

from __future__ import annotations

import torch
import torchvision


def random_network(name: str, size: int = 224) -> torch.nn.Module:
    """Return a network in eval mode whose BatchNorm layers hold the statistics of noise.

    With the initial ones nothing is normalized: values fade from layer to layer until the processor computes with
    denormal numbers, many times slower than with those of a trained network.
    """
    torch.manual_seed(0)
    network: torch.nn.Module = torchvision.models.get_model(name).train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network(torch.randn(16, 3, size, size))
    return network.eval()
