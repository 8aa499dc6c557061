"""The cost of a network: its parameters, and its MACs per input as counted by torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.utils.flop_counter import FlopCounterMode

from dfq_plugins.inputs import blank_inputs
from dfq_plugins.model_state import device_of

if TYPE_CHECKING:
    from torch import nn

    from dfq_plugins.types import Specification

OPERATIONS = 2
"""Torch counts a multiply-accumulate as two floating-point operations."""


@dataclass(frozen=True)
class Cost:
    """The cost of a network.

    Args:
        parameters: number of parameters.
        nonzero: number of nonzero parameters.
        macs: MACs of convolutions and linear layers for one input.
    """

    parameters: int
    nonzero: int
    macs: int


def measure_cost(model: nn.Module, spec: Specification) -> Cost:
    """Return the cost of a network for one sample of the specification.

    >>> from dfq_plugins.types import InputSpec
    >>> measure_cost(torch.nn.Conv2d(3, 8, 3, padding=1, bias=False), InputSpec((3, 4, 4)))
    Cost(parameters=216, nonzero=216, macs=3456)
    """
    weights = list(model.parameters())
    nonzero = sum(int(weight.count_nonzero()) for weight in weights)
    return Cost(
        sum(weight.numel() for weight in weights), nonzero, _counter(model, spec).get_total_flops() // OPERATIONS
    )


def layer_multiply_adds(model: nn.Module, spec: Specification) -> dict[str, int]:
    """Return the MACs of every module for one sample, including its submodules.

    >>> from dfq_plugins.types import InputSpec
    >>> layer_multiply_adds(torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.ReLU()), InputSpec((4,)))
    {'0': 8}
    """
    counts = _counter(model, spec).get_flop_counts()
    prefix = f"{type(model).__name__}."
    return {
        name.removeprefix(prefix): sum(operations.values()) // OPERATIONS
        for name, operations in counts.items()
        if name.startswith(prefix)
    }


def _counter(model: nn.Module, spec: Specification) -> FlopCounterMode:
    inputs = blank_inputs(spec, 1, device_of(model))
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        spec.run(model, inputs)
    return counter
