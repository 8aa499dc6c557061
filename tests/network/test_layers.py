"""Which layers compute what their class in torch computes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dfq_plugins.network.layers import computes_as


class Checked(nn.BatchNorm2d):
    """Adds only an attribute."""

    extra = 1


class Activated(nn.BatchNorm2d):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(inputs).relu()


def hooked() -> nn.Module:
    layer = nn.BatchNorm2d(2)
    layer.register_forward_hook(lambda *_: None)
    return layer


def patched() -> nn.Module:
    layer = nn.BatchNorm2d(2)
    layer.forward = lambda inputs: inputs
    return layer


def parametrized() -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.BatchNorm2d(2), dim=None)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.BatchNorm2d(2), True),
        (nn.BatchNorm1d(2), True),
        (Checked(2), True),
        (parametrized(), True),
        (Activated(2), False),
        (hooked(), False),
        (patched(), False),
        (nn.InstanceNorm2d(2), False),
    ],
)
def test_only_torchs_own_forward_pass_counts(layer: nn.Module, expected: bool) -> None:
    assert computes_as(layer, nn.BatchNorm2d) is expected
