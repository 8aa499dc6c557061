"""A synthetic set is used with the network that it was made from, in every command; the rest is said."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

import dfq_plugins as dfq
from dfq_plugins.errors import DataError
from dfq_plugins.model_state import frozen_copy
from dfq_plugins.network.origin import (
    DataOriginWarning,
    UntrainedNetworkWarning,
    check_origin,
    different_outputs,
    warn_if_untrained,
)
from dfq_plugins.quality.similarity import rank
from dfq_plugins.synthesis.run import synthesize
from tiny_networks import TinyNetwork

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dfq_plugins.data.dataset import SyntheticDataset
    from dfq_plugins.host.registry import Registry
    from dfq_plugins.types import InputSpec

STEPS = {"steps": 2, "batch_size": 8}


@pytest.fixture
def data(tiny_network: nn.Module, tiny_spec: InputSpec, pipeline_registry: Registry) -> SyntheticDataset:
    return synthesize(tiny_network, tiny_spec, generator="gaussian", num_samples=24, registry=pipeline_registry)


@pytest.fixture
def other(tiny_network: nn.Module) -> nn.Module:
    changed = copy.deepcopy(tiny_network)
    with torch.no_grad():
        changed.linear.bias += 1
    return changed


COMMANDS: dict[str, Callable[..., Any]] = {
    "quantize": lambda network, data, **more: dfq.quantize(network, data, calibrator="pytorch-quantization", **more),
    "finetune": lambda network, data, **more: dfq.finetune(
        network, data, calibrator="pytorch-quantization", training=STEPS, **more
    ),
    "distill": lambda network, data, **more: dfq.distill(network, network, data, training=STEPS, **more),
    "prune": lambda network, data, **more: dfq.prune(network, data, sparsity=0.2, training=STEPS, **more),
    "inspect": lambda network, data, **more: dfq.inspect(data, network, **more),
    "similarity": lambda network, data, **more: rank(network, data.spec, {"set": data}, **more),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.filterwarnings("ignore:The network that")
def test_another_networks_set_is_an_error_with_a_flag_to_go_on(
    command: str, data: SyntheticDataset, other: nn.Module, tiny_network: nn.Module
) -> None:
    COMMANDS[command](tiny_network, data)
    with pytest.raises(DataError, match=r"was made from another model: its digest .* --allow-other-network"):
        COMMANDS[command](other, data)
    with pytest.warns(DataOriginWarning, match="was made from another model"):
        COMMANDS[command](other, data, allow_other_network=True)


class Smooth(TinyNetwork):
    """The same weights in a network that computes something else."""

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.norm1(self.stem(inputs)))
        outputs: Tensor = self.linear(torch.tanh(self.norm2(self.conv(hidden)) + hidden).mean((2, 3)))
        return outputs


def smooth(network: nn.Module) -> nn.Module:
    changed = copy.deepcopy(network)
    changed.forward = Smooth.forward.__get__(changed)  # the class and its name stay
    return changed


def hooked(network: nn.Module) -> nn.Module:
    changed = copy.deepcopy(network)
    changed.norm1.register_forward_hook(lambda _module, _inputs, output: -output)
    return changed


@pytest.mark.parametrize("change", [smooth, hooked])
def test_equal_weights_with_another_forward_pass_are_another_network(
    change: Callable[[nn.Module], nn.Module], data: SyntheticDataset, tiny_network: nn.Module
) -> None:
    check_origin(data, frozen_copy(tiny_network), allow_other_network=False)
    with pytest.raises(DataError, match=r"it returns other outputs .* forward pass or a hook has"):
        check_origin(data, frozen_copy(change(tiny_network)), allow_other_network=False)


def test_a_set_is_not_extended_under_another_forward_pass(
    tiny_network: nn.Module, tiny_spec: InputSpec, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"generator": "gaussian", "output": tmp_path / "set"}
    synthesize(tiny_network, tiny_spec, num_samples=8, **settings)
    with pytest.raises(DataError, match="returns other outputs for the same inputs"):
        synthesize(smooth(tiny_network), tiny_spec, num_samples=16, **settings)
    assert len(synthesize(tiny_network, tiny_spec, num_samples=16, **settings)) == 16


class Random(TinyNetwork):
    """Answers differently each time."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) + torch.randn(1)


def test_a_network_that_answers_differently_each_time_is_not_compared(
    tiny_spec: InputSpec, data: SyntheticDataset
) -> None:
    samples = next(iter(data.loader(4)))
    assert different_outputs(Random().eval(), samples, tiny_spec) == ""


class Counting(TinyNetwork):
    """Counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(inputs)


def test_the_digest_is_that_of_the_given_network_also_where_a_pass_changes_buffers(tiny_spec: InputSpec) -> None:
    network = Counting().eval()
    data = synthesize(network, tiny_spec, generator="gaussian", num_samples=8)
    check_origin(data, frozen_copy(network), allow_other_network=False)


def test_untrained_statistics_are_said(tiny_network: nn.Module, tiny_spec: InputSpec) -> None:
    warn_if_untrained(tiny_network)
    warn_if_untrained(nn.Linear(2, 2))
    with pytest.warns(UntrainedNetworkWarning, match="All 2 BatchNorm layers of TinyNetwork still hold their initial"):
        warn_if_untrained(TinyNetwork())
    with pytest.warns(UntrainedNetworkWarning):
        synthesize(TinyNetwork(), tiny_spec, generator="gaussian", num_samples=4)
    with pytest.warns(UntrainedNetworkWarning):
        dfq.quantize(TinyNetwork(), torch.randn(8, 3, 8, 8), calibrator="pytorch-quantization", spec=tiny_spec)
