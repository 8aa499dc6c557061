"""Whether an input of eight bits over its known range is fine enough for the data that arrive in it."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch

from dfq_plugins.errors import DfqWarning
from dfq_plugins.inputs import count, rows
from dfq_plugins.network.agreement import output_agreement

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dfq_plugins.types import Inputs, InputSpec, Recipe, Specification

_STEPS = 255
"""Steps of an input of eight bits."""

_LOWEST_DECIBELS = 20.0
"""Signal-to-noise ratio of the float network's outputs below which rounding its input alone loses too much.

Images of eight bits lose nothing this way: they are at 40 dB and more.
"""

_SAMPLES, _VALUES = 32, 1_000_000
_TAIL = 0.0005


class InputStepWarning(DfqWarning):
    """One step of a quantized input is too large for most of its values."""


@torch.no_grad()
def warn_of_input_step(network: nn.Module, batch: Inputs, spec: Specification, recipe: Recipe) -> None:
    """Warn of an input range that is far wider than the data, by what rounding the input does to the float network.

    Args:
        network: a private copy of the float network in eval mode.
        batch: samples `(samples, *shape)`, by name if there are several inputs.
        spec: the input specification; only inputs with a known range are looked at.
        recipe: bit widths; nothing is checked where activations stay in float.
    """
    if recipe.activation_bits > 8 or all(one.bounds is None for one in spec.named.values()):  # noqa: PLR2004
        return
    some = rows(batch, slice(_SAMPLES))
    rounded = spec.map(_rounded, some)
    (worst, *_) = sorted(
        output_agreement(network, _Rounding(network, spec, rounded), [some], count(some), None, spec),
        key=lambda output: output.decibels,
    )
    if worst.decibels >= _LOWEST_DECIBELS:
        return
    named = [(name, one) for name, one in spec.named.items() if one.bounds is not None]
    values = dict(zip(spec.named, some.values() if isinstance(some, dict) else [some], strict=True))
    name, one = max(named, key=lambda pair: _step(pair[1]) / max(_spread(pair[1], values[pair[0]]), 1e-30))
    low, high = _middle(one, values[name])
    known = one.value_range or (0.0, 0.0)
    which = f"input {name!r}" if len(spec.named) > 1 else "input"
    warnings.warn(
        f"The value range of the {which}, {known[0]:g} to {known[1]:g}, is far wider than the data: one step of an "
        f"8-bit input is {_step(one):.3g}, while 99.9% of the values lie between {low:.4g} and {high:.4g}, with a "
        f"standard deviation of {_spread(one, values[name]):.3g}. Rounding the input alone leaves the float network's "
        f"output {worst.name!r} at {worst.decibels:.0f} dB. Give the range that matters as value_range (--value-range) "
        "and clip the rest in front of the network, compress the values (square root, logarithm) before training, or "
        "keep the first layer, or the input, in float or 16 bits.",
        InputStepWarning,
        stacklevel=3,
    )


class _Rounding(torch.nn.Module):
    """Runs a network on given inputs instead of those that it is called with."""

    def __init__(self, network: nn.Module, spec: Specification, inputs: Inputs) -> None:
        super().__init__()
        self.network, self._spec, self._inputs = network, spec, inputs

    def forward(self, *_positional: object, **_keywords: object) -> object:
        device = next(self.network.parameters(), torch.empty(0)).device
        return self._spec.run(self.network, self._spec.map(lambda _, part: part.to(device), self._inputs))


def _rounded(spec: InputSpec, values: Tensor) -> Tensor:
    """Return the values on the grid of an 8-bit quantizer over the whole input range."""
    if spec.input_range is None:
        return values
    low, high = spec.input_range
    step = (high - low) / _STEPS
    return ((values - low) / step).round().clamp(0, _STEPS) * step + low


def _step(spec: InputSpec) -> float:
    """Return one step in raw values."""
    low, high = spec.value_range or (0.0, 0.0)
    return (high - low) / _STEPS


def _raw(spec: InputSpec, values: Tensor) -> Tensor:
    """Return some values before normalization, in one dimension."""
    view = (1, -1) + (1,) * (values.ndim - 2)
    std, mean = (torch.tensor(part or (fill,)).view(view) for part, fill in ((spec.std, 1.0), (spec.mean, 0.0)))
    return (values.cpu() * std + mean).flatten()[:_VALUES]


def _middle(spec: InputSpec, values: Tensor) -> tuple[float, float]:
    """Return the range of the middle 99.9% of the raw values."""
    ordered = _raw(spec, values).sort().values
    last = len(ordered) - 1
    return float(ordered[round(last * _TAIL)]), float(ordered[round(last * (1 - _TAIL))])


def _spread(spec: InputSpec, values: Tensor) -> float:
    return float(_raw(spec, values).std(correction=0))
