"""Networks that frameworks once computed wrongly without a word, in each framework."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from dfq_plugins.quantization.run import run_quantization
from tiny_networks import TiedNetwork, TinyNetwork, settle_batch_norm

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dfq_plugins.types import InputSpec

FRAMEWORKS = ("torch-ao", "pytorch-quantization", "brevitas")


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_batch_norm_behind_one_of_two_layers_that_share_a_weight(
    framework: str, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor], tmp_path: Path
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = settle_batch_norm(TiedNetwork(), torch.randn(64, 3, 8, 8).clamp(-2, 2))
    run = run_quantization(network, tiny_batches, calibrator=framework, spec=tiny_spec, output=tmp_path)
    assert run.output_agreement[0].decibels > 25
    assert run.artifacts
    assert not run.rejected


class Fronted(TinyNetwork):
    """Something without weights stands in front of the first layer."""

    def __init__(self, front: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.front = front

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = super().forward(self.front(inputs))
        return outputs


FRONTS: dict[str, Callable[[Tensor], Tensor]] = {
    "padding": nn.ZeroPad2d(1),
    "pooling": nn.AvgPool2d(2),
    "arithmetic": lambda inputs: (inputs - 0.2) / 0.5,
    "activation": nn.ReLU(),
    "both": nn.Sequential(nn.ReflectionPad2d(1), nn.Tanh()),
}


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("framework", ["pytorch-quantization", "brevitas"])
def test_what_stands_in_front_of_the_first_layer_has_the_width_of_the_input(
    framework: str, front: str, tiny_spec: InputSpec, tiny_batches: list[Tensor]
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = settle_batch_norm(Fronted(FRONTS[front]), torch.randn(64, 3, 8, 8).clamp(-2, 2))
    run = run_quantization(network, tiny_batches, calibrator=framework, recipe="w4a4", spec=tiny_spec)
    assert run.coverage.format_of("stem", "input").bits == 8
    assert run.coverage.format_of("stem", "weight").bits == 4
    assert run.coverage.format_of("conv", "input").bits == 4
