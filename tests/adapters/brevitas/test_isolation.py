"""Networks whose joins Brevitas cannot align, or whose functions it cannot walk, are quantized all the same."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from dfq_brevitas import graph
from dfq_brevitas.calibrator import BrevitasCalibrator
from dfq_plugins.errors import DfqWarning
from dfq_plugins.types import InputSpec, Recipe

if TYPE_CHECKING:
    from collections.abc import Callable

SPEC = InputSpec((3, 12, 12), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), (0.0, 1.0))


class Written(nn.Module):
    def __init__(self, forward: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.linear = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 8)
        self.branches = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=d, dilation=d) for d in (1, 2, 3)])
        self.written = forward
        self.eval()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.written(self, inputs)


def attention(net: Any, x: torch.Tensor) -> torch.Tensor:
    tokens = net.conv(x).flatten(2).transpose(1, 2)
    tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1)
    return tokens + (tokens @ net.linear(tokens).transpose(1, 2)).softmax(-1) @ tokens


def cascade(net: Any, x: torch.Tensor) -> torch.Tensor:
    y = net.conv(x)
    sums = [net.branches[0](y)]
    for branch in net.branches[1:]:
        sums.append(sums[-1] + branch(y))
    return torch.cat(sums, 1)[:, :8] + y


def views(net: Any, x: torch.Tensor) -> torch.Tensor:
    y = net.conv(x)
    first, second = y[:, :2], y[:, 1:7]
    return torch.cat([first + 1, second], 1) + y


def heads(net: Any, x: torch.Tensor) -> torch.Tensor:
    y = net.conv(x)
    maps = [branch(y).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 2) for branch in net.branches]
    return torch.cat(maps, 1)


def lowered(net: Any, x: torch.Tensor) -> torch.Tensor:
    return net.branches[0](net.conv(x).relu() + (-0.5))


def linear_attention(net: Any, x: torch.Tensor) -> torch.Tensor:
    """Divides by a sum that is 0 for some positions but for a small number."""
    tokens = net.conv(x).flatten(2).transpose(1, 2).relu()
    summed = tokens @ (tokens.transpose(1, 2) @ tokens.new_ones(*tokens.shape[:2], 1))
    return net.linear(tokens + tokens @ (tokens.transpose(1, 2) @ tokens) / (summed + 1e-5))


def decibels(network: nn.Module) -> float:
    calibrator = BrevitasCalibrator()
    generator = torch.Generator().manual_seed(0)
    small = torch.randn(48, 3, 4, 4, generator=generator)
    inputs = nn.functional.interpolate(small, size=(12, 12), mode="bilinear").clamp(-2, 2)
    prepared = calibrator.prepare(network, SPEC, Recipe(8, 8))
    calibrator.calibrate(prepared, [inputs[:32]])
    with torch.no_grad():
        expected, found = network(inputs[32:]), calibrator.convert(prepared)(inputs[32:])
    signal = (expected - expected.mean()).square().sum()
    return 10 * math.log10(float(signal / (expected - found).square().sum()))


@pytest.mark.filterwarnings("ignore::dfq_plugins.errors.DfqWarning")
@pytest.mark.parametrize("forward", [attention, cascade, views, heads, lowered, linear_attention])
def test_outputs_follow_the_float_network(forward: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
    assert decibels(Written(forward)) > 25


@pytest.mark.parametrize("forward", [attention, cascade, views, heads, lowered, linear_attention])
def test_what_brevitas_cannot_walk_is_isolated_and_said(
    forward: Callable[[Any, torch.Tensor], torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    quantize, calls = graph.quantize, []

    def fail_once(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == 1:
            raise RecursionError("too deep")
        return quantize(*args, **kwargs)

    monkeypatch.setattr(graph, "quantize", fail_once)
    with pytest.warns(DfqWarning, match=r"as it is \(RecursionError: too deep\)\. .* gets a quantizer of its own"):
        assert decibels(Written(forward)) > 25
