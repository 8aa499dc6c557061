"""The affine map in the place of a frozen BatchNorm layer: the same outputs and gradients, its hooks still found."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dfq_plugins.statistics.batch_norm import statistics_layers
from dfq_plugins.synthesis.fast_layers import FrozenNorm, freeze_norms

LAYERS = {
    "1d": (nn.BatchNorm1d(4), (5, 4)),
    "2d": (nn.BatchNorm2d(4), (5, 4, 3, 3)),
    "3d": (nn.BatchNorm3d(4), (5, 4, 2, 2, 2)),
    "without affine": (nn.BatchNorm2d(4, affine=False), (5, 4, 3, 3)),
    "wide eps": (nn.BatchNorm2d(4, eps=0.5), (5, 4, 3, 3)),
}


def trained(layer: nn.modules.batchnorm._BatchNorm) -> nn.modules.batchnorm._BatchNorm:
    rng = torch.Generator().manual_seed(0)
    for value in (layer.running_mean, layer.weight, layer.bias):
        if value is not None:
            value.data = torch.randn(4, generator=rng)
    layer.running_var = torch.rand(4, generator=rng) + 0.1
    return layer.eval()


@pytest.mark.slow
@pytest.mark.parametrize("compiling", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_outputs_and_gradients_are_those_of_the_layer(name: str, compiling: bool) -> None:
    layer, shape = LAYERS[name]
    frozen: nn.Module = FrozenNorm(trained(layer))
    if compiling:
        frozen = torch.compile(frozen, backend="aot_eager", fullgraph=True)
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(1))

    def both(module: nn.Module) -> tuple[Tensor, Tensor]:
        leaf = inputs.clone().requires_grad_()
        outputs = module(leaf)
        return outputs, torch.autograd.grad(outputs.square().sum(), leaf)[0]

    for mine, theirs in zip(both(frozen), both(layer), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_half_precision_stays_half() -> None:
    frozen = torch.compile(FrozenNorm(trained(nn.BatchNorm2d(4))), backend="aot_eager", fullgraph=True)
    assert frozen(torch.ones(1, 4, 2, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_shared_layers_stay_shared_and_taps_find_the_same_names() -> None:
    norm = nn.BatchNorm2d(4)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), norm, nn.ReLU(), norm, nn.InstanceNorm2d(4)).eval()
    names = tuple(statistics_layers(network))
    freeze_norms(network)
    assert network[1] is network[3]
    assert isinstance(network[1], FrozenNorm)
    assert tuple(statistics_layers(network)) == names
    assert isinstance(network[4], nn.InstanceNorm2d)


def test_layers_without_statistics_stay() -> None:
    network = nn.Sequential(nn.BatchNorm2d(4, track_running_stats=False))
    assert isinstance(freeze_norms(network)[0], nn.BatchNorm2d)
