"""Private copies: of wrapped, compiled, scripted, lazy and just used networks, whose callers keep them as they were."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from dfq_plugins.errors import ModelError
from dfq_plugins.model_state import frozen_copy, preserve_global_state
from dfq_plugins.private_copy import private_copy, unwrapped

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SAMPLE = torch.zeros(2, 3, 8, 8)


class Holder(nn.Module):
    """Holds a network without a forward pass, like timm's average of weights."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.module = network


class Caching(nn.Module):
    """Keeps what it computed, as attention layers do for plots."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 1)
        self.maps: dict[str, list[torch.Tensor]] = {}

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.latest = self.layer(inputs)
        self.maps = {"layer": [self.latest]}
        return self.latest


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        torch.compile,
        torch.optim.swa_utils.AveragedModel,
        Holder,
        lambda network: torch.compile(nn.DataParallel(network)),
    ],
)
def test_the_wrapper_is_left_out(tiny_network: nn.Module, wrap: Callable[[nn.Module], nn.Module]) -> None:
    copied = frozen_copy(wrap(tiny_network))
    assert type(copied) is type(tiny_network)
    assert copied is not tiny_network
    assert torch.equal(copied(SAMPLE), tiny_network(SAMPLE))


def test_distributed_networks_are_copied_at_any_depth(tiny_network: nn.Module, tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(tiny_network)
        assert type(frozen_copy(wrapped)) is type(tiny_network)
        assert type(frozen_copy(nn.Sequential(wrapped))[0]) is type(tiny_network)
    finally:
        torch.distributed.destroy_process_group()


def test_compiled_parts_become_plain_modules_and_stay_shared(tiny_network: nn.Module) -> None:
    part = torch.compile(tiny_network)
    copied = private_copy(nn.ModuleList([part, part, tiny_network]))
    assert {type(module) for module in copied} == {type(tiny_network)}
    assert copied[0] is copied[1]
    assert copied[0].linear.weight is copied[2].linear.weight


def test_a_module_with_a_part_called_module_is_no_wrapper() -> None:
    class Twice(Holder):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return 2 * self.module(inputs)

    network = Twice(nn.Identity())
    assert unwrapped(network) is network


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_a_computed_weight_is_copied_after_a_pass_with_gradients(norm: Callable[[nn.Module], nn.Module]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch prefers the newer form
        network = norm(nn.Linear(3, 2))
    network(torch.ones(1, 3))
    copied = frozen_copy(network)
    network.eval()
    torch.testing.assert_close(copied(torch.ones(1, 3)), network(torch.ones(1, 3)))
    assert network.weight.requires_grad
    assert copied(torch.ones(1, 3)).requires_grad is False


def test_cached_results_are_copied_without_their_graph() -> None:
    network = Caching()
    network(SAMPLE)
    copied = private_copy(network)
    assert network.latest.requires_grad
    assert not copied.latest.requires_grad
    assert torch.equal(copied.maps["layer"][0], network.latest)


def test_torchscript_is_refused_with_the_way_round() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of TorchScript
        scripted = torch.jit.script(nn.Sequential(nn.Linear(3, 2)))
        traced = torch.jit.trace(nn.Linear(3, 2), torch.zeros(1, 3))
    for network in (scripted, traced):
        with pytest.raises(
            ModelError, match=r"(Sequential|Linear) is TorchScript. Build the network that was scripted"
        ):
            frozen_copy(network)


def test_scripted_parts_are_copied() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = nn.Sequential(torch.jit.script(nn.Linear(3, 2)), nn.ReLU())
    assert not any(parameter.requires_grad for parameter in frozen_copy(network).parameters())


def test_an_exported_program_is_refused() -> None:
    program = torch.export.export(nn.Sequential(nn.Linear(3, 2)), (torch.zeros(2, 3),)).module()
    with pytest.raises(ModelError, match=r"comes from torch.export, .* Pass the network that was exported."):
        frozen_copy(program)
    frozen_copy(torch.fx.symbolic_trace(nn.Sequential(nn.Linear(3, 2))))


def test_lazy_layers_need_a_size() -> None:
    network = nn.Sequential(nn.LazyConv2d(4, 1), nn.LazyBatchNorm2d())
    with pytest.raises(ModelError, match=r"but 0.weight, 0.bias, .* and 1 more of Sequential are uninitialized: lazy"):
        frozen_copy(network)
    network(SAMPLE)
    assert frozen_copy(network)(SAMPLE).shape == (2, 4, 8, 8)


def test_what_the_caller_compiled_runs_plainly() -> None:
    ran = []

    @torch.compile(backend="eager")
    def function(inputs: torch.Tensor) -> torch.Tensor:
        ran.append(torch.compiler.is_compiling())
        return inputs + 1

    with preserve_global_state():
        function(SAMPLE)
    assert ran == [False]
