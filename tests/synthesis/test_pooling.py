"""Max pooling by torch's kernel: the same values and gradients, also inside a compiled function."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dfq_plugins.synthesis.fast_layers import NativeMaxPool2d, max_pool2d, native_pooling

LAYERS = [nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2), nn.MaxPool2d((3, 1), padding=(1, 0)), nn.MaxPool2d(2, dilation=2)]


def both(module: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
    leaf = inputs.clone().requires_grad_()
    outputs = module(leaf)
    return outputs, torch.autograd.grad(outputs.square().sum(), leaf)[0]


@pytest.mark.slow
@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_are_those_of_the_layer(layer: nn.MaxPool2d, memory_format: torch.memory_format) -> None:
    inputs = torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=memory_format)
    compiled = torch.compile(NativeMaxPool2d(layer), backend="aot_eager", fullgraph=True)
    for mine, theirs in zip(both(compiled, inputs), both(layer, inputs), strict=True):
        assert torch.equal(mine, theirs)


def test_the_operation_keeps_torch_s_rules_for_operations() -> None:
    inputs = torch.randn(1, 2, 6, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(max_pool2d, (inputs, [2, 2], [2, 2], [0, 0], [1, 1]), test_utils=checks)


def test_a_compiled_network_pools_as_it_does_uncompiled() -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.MaxPool2d(2), nn.Flatten())
    inputs = torch.randn(2, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    plain = both(network, inputs)
    compiled = both(torch.compile(native_pooling(network), backend="aot_eager"), inputs)
    for mine, theirs in zip(compiled, plain, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_layers_that_it_cannot_stand_for_stay() -> None:
    network = nn.Sequential(nn.MaxPool2d(2), nn.MaxPool2d(2, ceil_mode=True), nn.AdaptiveMaxPool2d(1))
    native_pooling(network)
    assert [type(module) for module in network] == [NativeMaxPool2d, nn.MaxPool2d, nn.AdaptiveMaxPool2d]
