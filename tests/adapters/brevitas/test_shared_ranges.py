"""A quantizer that several tensors share covers the widest of them, in whatever order they are calibrated."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from dfq_brevitas.calibrator import BrevitasCalibrator
from dfq_brevitas.options import BrevitasOptions
from dfq_plugins.types import InputSpec, Recipe

SPEC = InputSpec((3, 8, 8))


class Unequal(nn.Module):
    """An addition of a narrow and a wide branch."""

    def __init__(self, *, wide_first: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.narrow, self.wide, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        nn.init.constant_(self.wide.weight, 4.0)
        self.wide_first = wide_first

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        narrow, wide = self.narrow(inputs), self.wide(inputs)
        return self.last(wide + narrow if self.wide_first else narrow + wide)


@pytest.mark.parametrize("statistic", [None, "mse"])
@pytest.mark.parametrize("wide_first", [True, False])
@torch.no_grad()
def test_an_addition_keeps_its_wider_branch(wide_first: bool, statistic: Any) -> None:
    network = Unequal(wide_first=wide_first).eval()
    calibrator = BrevitasCalibrator(BrevitasOptions(activation_scale=statistic))
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(16, 3, 8, 8, generator=generator) for _ in range(3)]
    prepared = calibrator.prepare(network, SPEC, Recipe(8, 8))
    calibrator.calibrate(prepared, batches)
    expected, found = network(batches[0]), calibrator.convert(prepared)(batches[0])
    noise = (expected - found).square().sum() / (expected - expected.mean()).square().sum()
    assert noise < 10**-3.0


@torch.no_grad()
def test_the_scale_is_the_largest_of_the_averages_over_the_batches() -> None:
    network, calibrator = Unequal(wide_first=False).eval(), BrevitasCalibrator(BrevitasOptions(activation_scale="max"))
    generator = torch.Generator().manual_seed(0)
    batches = [scale * torch.randn(16, 3, 8, 8, generator=generator) for scale in (1.0, 2.0)]
    prepared = calibrator.prepare(network, SPEC, Recipe(8, 8))
    calibrator.calibrate(prepared, batches)
    shared = calibrator.convert(prepared).get_submodule("add_quant")
    highest = sum(float(network.wide(batch).abs().max()) for batch in batches) / len(batches)
    assert 128 * float(shared.act_quant.scale()) == pytest.approx(highest, rel=0.02)
