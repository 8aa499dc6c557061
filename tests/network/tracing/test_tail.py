"""What lies behind the last layers is found, and stays in float in every framework that quantizes graphs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from dfq_brevitas.calibrator import BrevitasCalibrator
from dfq_plugins.network.tracing.tail import tail
from dfq_plugins.types import Calibrator, InputSpec, Recipe
from dfq_torch_ao.calibrator import TorchAoCalibrator

INPUTS = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(0)).clamp(-2, 2)
SPEC = InputSpec((3, 16, 16), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), (0.0, 1.0), num_classes=0)


class Detector(nn.Module):
    """Boxes in pixels and scores between 0 and 1 in one tensor; in place, or joined."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU())
        self.heads = nn.ModuleList([nn.Conv2d(12, 7, 1), nn.Conv2d(12, 7, 3, 2, 1)])
        self.in_place = in_place
        self.eval()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        features = self.stem(inputs)
        return torch.cat([self.decoded(head(features)) for head in self.heads], 1)

    def decoded(self, found: torch.Tensor) -> torch.Tensor:
        found = found.flatten(2).transpose(1, 2).sigmoid()
        if self.in_place:
            found[..., :2] = found[..., :2] * 16
            found[..., 2:4] = (found[..., 2:4] * 2) ** 2 * 400
            return found
        place, size, scores = found.split((2, 2, 3), -1)
        return torch.cat([place * 16, (size * 2) ** 2 * 400, scores], -1)


class Restorer(nn.Module):
    """Adds a small correction to an image."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 3, 3, padding=1)
        self.eval()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs * 100 + self.last(self.first(inputs).relu())


def quantized(calibrator: Calibrator, network: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the outputs of the float and the quantized network on fresh inputs."""
    prepared = calibrator.prepare(network, SPEC, Recipe(8, 8))
    calibrator.calibrate(prepared, [INPUTS[:16]])
    with torch.no_grad():
        return network(INPUTS[16:].clone()), calibrator.convert(prepared)(INPUTS[16:].clone())


def decibels(expected: torch.Tensor, found: torch.Tensor) -> float:
    signal = (expected - expected.mean()).square().sum()
    return 10 * math.log10(float(signal / (expected - found).square().sum()))


@pytest.mark.parametrize("calibrator", [TorchAoCalibrator(), BrevitasCalibrator()])
@pytest.mark.parametrize("in_place", [True, False])
def test_scores_beside_boxes_keep_their_precision(calibrator: Calibrator, in_place: bool) -> None:
    expected, found = quantized(calibrator, Detector(in_place=in_place))
    assert decibels(expected[..., 4:], found[..., 4:]) > 20
    assert decibels(expected[..., :4], found[..., :4]) > 25


@pytest.mark.parametrize("calibrator", [TorchAoCalibrator(), BrevitasCalibrator()])
def test_a_small_correction_of_the_input_is_not_rounded_away(calibrator: Calibrator) -> None:
    expected, found = quantized(calibrator, Restorer())
    assert (found - expected).abs().max() < 100 * 4 / 255, "no coarser than the input's own step"


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Linear(4, 4)

    def forward(self, inputs: torch.Tensor) -> Any:
        features = self.first(inputs).relu()
        pooled = features.mean((2, 3))
        logits = self.second(pooled + 1)
        return torch.cat([logits, pooled], 1).sigmoid(), logits @ logits.t(), features * 2


def test_the_tail_is_what_no_layer_and_no_product_reads() -> None:
    graph = torch.fx.symbolic_trace(Branching())
    assert [node.name for node in tail(graph)] == ["cat", "sigmoid", "mul"]
