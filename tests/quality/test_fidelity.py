"""Noise by layer: against arithmetic on chosen networks, and the frameworks' folding of layers seen through."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import dfq_plugins
from dfq_plugins.quality.fidelity import as_float, decibels, layer_fidelity
from dfq_plugins.types import Coverage, InputSpec, NumberFormat, QuantizedTensor

SPEC = InputSpec((3, 8, 8), (0.5,) * 3, (0.25,) * 3, (0.0, 1.0), 4)


def coverage(*names: str) -> Coverage:
    int8 = NumberFormat(8, signed=True, symmetric=True, per_channel=False, stored_bits=8)
    return Coverage(tuple(QuantizedTensor(name, "Linear", "weight", int8) for name in names))


class Chain(nn.Module):
    """Two linear layers with a ReLU between; `norm` scales what the first gives."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.relu, self.second = (nn.Linear(4, 4), nn.Identity(), nn.ReLU(), nn.Linear(4, 2))
        with torch.no_grad():
            self.first.weight.copy_(torch.eye(4))
            self.first.bias.zero_()
            self.second.weight.fill_(1.0)
            self.second.bias.zero_()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.second(self.relu(self.norm(self.first(inputs))))
        return outputs


def test_the_ratio_is_that_of_the_energies() -> None:
    noisy = Chain()
    with torch.no_grad():
        noisy.first.bias += 0.1
    found = layer_fidelity(Chain(), noisy, torch.ones(20, 4), coverage("first", "second"))
    ratios = {layer.name: layer.decibels for layer in found.layers}
    assert ratios["first"] == pytest.approx(20.0, abs=1e-4)  # an error of a tenth
    assert ratios["second"] == pytest.approx(20.0, abs=1e-4)
    assert found.num_samples == 20
    assert found.unmatched == ()


def test_the_noisiest_layer_comes_first_and_equal_ones_are_infinite() -> None:
    noisy = Chain()
    with torch.no_grad():
        noisy.second.bias += 0.5
    found = layer_fidelity(Chain(), noisy, torch.ones(3, 4), coverage("first", "second"))
    assert [layer.name for layer in found.layers] == ["second", "first"]
    assert found.layers[1].decibels == math.inf


class Folded(Chain):
    """Computes the ReLU inside its first layer, as frameworks that fuse do."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.second(self.first(inputs))
        return outputs


def test_a_layer_that_took_over_the_activation_is_compared_behind_it() -> None:
    folded = Folded()
    folded.first = nn.Sequential(*[folded.first, nn.ReLU()])  # type: ignore[assignment]
    inputs = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    found = layer_fidelity(Chain(), folded, inputs, coverage("first", "second"))
    assert [layer.decibels for layer in found.layers] == [math.inf, math.inf]


def test_what_cannot_be_compared_is_named_with_the_reason() -> None:
    quantized = Chain()
    quantized.add_module("scale", nn.Identity())
    quantized.relu = nn.Flatten(0)  # type: ignore[assignment]
    del quantized.norm
    quantized.forward = lambda inputs: quantized.relu(quantized.first(inputs))  # type: ignore[method-assign]
    found = layer_fidelity(Chain(), quantized, torch.ones(2, 4), coverage("scale", "norm", "relu", "first"))
    assert dict(found.unmatched) == {
        "scale": "an operation that the framework inserted, or that is not a module in the float network",
        "norm": "no module with this name in the quantized network",
        "relu": "its output differs in shape or order from the float network, or it is never called",
    }
    assert [layer.name for layer in found.layers] == ["first"]


def test_a_module_that_is_called_twice_is_compared_call_by_call() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)
            with torch.no_grad():
                self.layer.weight.copy_(2 * torch.eye(2))
                self.layer.bias.zero_()

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            outputs: torch.Tensor = self.layer(self.layer(inputs))
            return outputs

    found = layer_fidelity(Shared(), Shared(), torch.ones(2, 2), coverage("layer"))
    assert found.layers[0].decibels == math.inf


def test_decibels_of_nothing() -> None:
    assert decibels(0.0, 1.0) == -math.inf
    assert decibels(0.0, 0.0) == math.inf


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor, torch.quantize_per_channel and other:UserWarning")
def test_other_number_formats_are_read_as_float() -> None:
    quantized = torch.quantize_per_tensor(torch.tensor([0.5, 1.0]), 0.5, 0, torch.quint8)
    value = as_float(quantized)
    assert value is not None
    assert value.tolist() == [0.5, 1.0]
    assert as_float((torch.zeros(1),)) is None


def test_both_networks_stay_as_they_were() -> None:
    network, quantized = Chain(), Chain()
    network.train()
    layer_fidelity(network, quantized, torch.ones(2, 4), coverage("first"))
    assert network.training
    for module in (*network.modules(), *quantized.modules()):
        assert not module._forward_hooks


@pytest.mark.slow
@pytest.mark.parametrize("calibrator", ["torch-ao", "pytorch-quantization", "brevitas"])
def test_every_framework_matches_its_layers_with_weights(
    calibrator: str, tiny_network: nn.Module, tiny_batches: list[torch.Tensor]
) -> None:
    inputs = torch.cat(tiny_batches)
    run = dfq_plugins.run_quantization(tiny_network, inputs, calibrator=calibrator, recipe="w8a8", spec=SPEC)
    found = layer_fidelity(tiny_network, run.model, inputs[:16], run.coverage)
    ratios = {layer.name: layer.decibels for layer in found.layers}
    assert {"stem", "conv", "linear"} <= ratios.keys()
    assert min(ratios.values()) > 20  # another layer's output, or one on the wrong side of an activation, gives less
    narrow = dfq_plugins.run_quantization(tiny_network, inputs, calibrator=calibrator, recipe="w4a4", spec=SPEC)
    fewer = layer_fidelity(tiny_network, narrow.model, inputs[:16], narrow.coverage)
    assert fewer.layers[0].decibels < found.layers[0].decibels - 6
