"""The model digest: equal for equal networks, different for everything that changes what they compute."""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from dfq_plugins.network.digest import model_digest

if TYPE_CHECKING:
    from collections.abc import Callable


def test_it_is_a_sha256() -> None:
    assert re.fullmatch("[0-9a-f]{64}", model_digest(nn.ReLU()))


def changed_mode(network: nn.Module) -> None:
    network.train()


def changed_gradients(network: nn.Module) -> None:
    network.requires_grad_(requires_grad=False)


def changed_layout(network: nn.Module) -> None:
    network.to(memory_format=torch.channels_last)


def changed_counter(network: nn.Module) -> None:
    network.norm1.num_batches_tracked += 5


def changed_hooks(network: nn.Module) -> None:
    network.register_forward_hook(lambda *_: None)


@pytest.mark.parametrize(
    "change", [changed_mode, changed_gradients, changed_layout, changed_counter, changed_hooks, lambda _: None]
)
def test_what_changes_no_result_changes_no_digest(tiny_network: nn.Module, change: Callable[[nn.Module], None]) -> None:
    other = copy.deepcopy(tiny_network)
    change(other)
    assert model_digest(other) == model_digest(tiny_network)


def changed_weight(network: nn.Module) -> None:
    with torch.no_grad():
        network.conv.weight[0, 0, 0, 0] += 1e-6


def changed_statistics(network: nn.Module) -> None:
    network.norm2.running_var[0] += 1e-6


def changed_dtype(network: nn.Module) -> None:
    network.double()


def changed_kind(network: nn.Module) -> None:
    network.relu1 = nn.ReLU6()


def changed_stride(network: nn.Module) -> None:
    network.conv.stride = (2, 2)


def changed_eps(network: nn.Module) -> None:
    network.norm1.eps = 0.5


def changed_name(network: nn.Module) -> None:
    network.other = network.linear
    del network.linear


@pytest.mark.parametrize(
    "change",
    [
        changed_weight,
        changed_statistics,
        changed_dtype,
        changed_kind,
        changed_stride,
        changed_eps,
        changed_name,
    ],
)
def test_what_changes_results_changes_the_digest(tiny_network: nn.Module, change: Callable[[nn.Module], None]) -> None:
    other = copy.deepcopy(tiny_network)
    change(other)
    assert model_digest(other) != model_digest(tiny_network)


def test_it_reads_every_kind_of_tensor() -> None:
    network = nn.Module()
    for number, value in enumerate(
        (torch.tensor(1.5), torch.empty(0), torch.tensor([True]), torch.ones(2, dtype=torch.bfloat16), torch.arange(3))
    ):
        network.register_buffer(f"value{number}", value)
    before = model_digest(network)
    network.value3[1] = 2
    assert model_digest(network) != before
