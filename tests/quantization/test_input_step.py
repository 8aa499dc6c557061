"""An input range far wider than the data is said, with the range that matters."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from dfq_plugins.quantization.input_step import InputStepWarning, warn_of_input_step
from dfq_plugins.quantization.run import run_quantization
from dfq_plugins.types import InputSpec, NetworkSpec, Recipe


def frames(samples: int = 16) -> torch.Tensor:
    """Raw values of 80 with a little noise and a few bright points, as in astronomical images."""
    rng = torch.Generator().manual_seed(0)
    values = 80 + 8 * torch.randn(samples, 1, 16, 16, generator=rng)
    values[:, 0, 3, 3] = 50_000
    return values


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1))
    return nn.Sequential(nn.Hardtanh(-3.0, 3.0), layers).eval()  # bright points are clipped


WIDE = InputSpec((1, 16, 16), (80.0,), (8.0,), (0.0, 60_000.0))


def test_the_step_the_range_and_the_loss_are_said() -> None:
    data = (frames() - 80) / 8
    told = r"0 to 60000, is far wider than the data: one step of an 8-bit input is 235, while 99\.9% of the values lie"
    with pytest.warns(InputStepWarning, match=told):
        warn_of_input_step(network(), data, WIDE, Recipe(8, 8))
    with pytest.warns(InputStepWarning, match=r"Give the range that matters as value_range"):
        run_quantization(network(), data, calibrator="pytorch-quantization", spec=WIDE)


@pytest.mark.parametrize(
    ("spec", "recipe"),
    [
        (InputSpec((1, 16, 16), (80.0,), (8.0,), (40.0, 120.0)), Recipe(8, 8)),
        (InputSpec((1, 16, 16)), Recipe(8, 8)),
        (WIDE, Recipe(4, 32)),
    ],
)
def test_fitting_ranges_unknown_ones_and_float_activations_are_quiet(spec: InputSpec, recipe: Recipe) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_input_step(network(), ((frames() - 80) / 8).clamp(-5, 5), spec, recipe)


class Two(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a + b


def test_the_input_is_named_where_there_are_several() -> None:
    spec = NetworkSpec({"a": InputSpec((4,), value_range=(0, 1)), "b": InputSpec((4,), value_range=(0, 1000))})
    with pytest.warns(InputStepWarning, match="The value range of the input 'b', 0 to 1000"):
        warn_of_input_step(Two(), {"a": torch.rand(8, 4), "b": torch.rand(8, 4)}, spec, Recipe(8, 8))
