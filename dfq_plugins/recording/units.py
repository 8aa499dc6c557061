"""The units of a network whose activations are recorded, and how they are read in a forward pass.

A layer is a module whose *input* is read. For a weighted layer, the input is the output of the preceding layer after
its activation function, normalization, pooling or addition, however the code between them is written. In a network of
rectifiers, these are exactly the rectified pre-activations. The last layer is the network's output: the logits divided
by the temperature.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from dfq_plugins.errors import ModelError, UsageError, nearest
from dfq_plugins.generators.noise import draw_noise
from dfq_plugins.generators.start import known_noise
from dfq_plugins.model_state import ForwardHooks, device_of
from dfq_plugins.network.outputs import named_outputs
from dfq_plugins.network.probe import plain, record_calls
from dfq_plugins.recording.info import Layer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor
    from torch.utils.hooks import RemovableHandle

    from dfq_plugins.network.probe import Call
    from dfq_plugins.recording.options import Units
    from dfq_plugins.types import InputSpec

OUTPUT = "output"
"""Name of the last layer, the network's logits."""

INPUT = "input"
"""Name of the network's input in a dropout filter."""

PROBE_SAMPLES = 8
PROBE_SEED = 0


def probe_inputs(model: nn.Module, spec: InputSpec) -> Tensor:
    """Return a few fixed noise inputs, so that results derived from them do not depend on the data."""
    rng = torch.Generator().manual_seed(PROBE_SEED)
    drawn: Tensor = draw_noise(spec, PROBE_SAMPLES, known_noise(spec), rng, device_of(model))
    return drawn.contiguous()


@torch.no_grad()
def find_layers(model: nn.Module, spec: InputSpec, names: Sequence[str] | None, units: Units) -> tuple[Layer, ...]:
    """Return the layers to record, in the order in which a forward pass reaches them, the output last.

    Args:
        model: network in eval mode.
        spec: its input specification.
        names: modules whose inputs are recorded; None selects every convolution and linear layer except those that
            read the network's input. If several read the same tensor, the first is selected.
        units: definition of a unit.

    Raises:
        UsageError: a forward pass does not call a module of a given name.
        ModelError: a layer's activation has no batch axis, or the network does not return class logits.
    """
    sample = probe_inputs(model, spec)
    calls = record_calls(model, sample)
    chosen = _weighted_layers(calls, sample) if names is None else _select_layers(calls, names)
    for call in chosen:
        if call.entered.ndim < 2 or len(call.entered) != len(sample):  # noqa: PLR2004  (batch, units)
            raise ModelError(
                f"The layer {call.name!r} reads a tensor of shape {tuple(call.entered.shape)}, whose first axis is not "
                "the batch. List the layers to record, without this one."
            )
    with UnitReader(model, [call.name for call in chosen], units=units) as reader:
        read = reader.read(sample)
    shapes = [tuple(call.entered.shape[1:]) for call in chosen] + [tuple(read[-1].shape[1:])]
    return tuple(
        Layer(name, shape, values.shape[1], rectified=name == OUTPUT or float(values.min()) >= 0)
        for name, shape, values in zip(reader.names, shapes, read, strict=True)
    )


def _select_layers(calls: Sequence[Call], names: Sequence[str]) -> list[Call]:
    known = {call.name: call for call in calls}
    for name in names:
        if name not in known:
            raise UsageError(
                f"A layer must be a module that the network calls, but it does not call {name!r}."
                f"{nearest(name, known)} It calls {', '.join(known)}."
            )
    return [call for call in calls if call.name in names]


def _weighted_layers(calls: Sequence[Call], sample: Tensor) -> list[Call]:
    """Return the first reader of each tensor that enters a weighted layer, excluding the network's input."""
    weighted = [call for call in calls if isinstance(call.module, (nn.Linear, _ConvNd))]
    seen = [call.entered for call in weighted[:1]]  # the first reads the input, possibly reshaped
    found: list[Call] = []
    for call in weighted[1:]:
        is_input = call.entered.data_ptr() == sample.data_ptr()
        if not is_input and not any(call.entered is other for other in seen):
            found.append(call)
            seen.append(call.entered)
    return found


class UnitReader(ForwardHooks):
    """Reads the units of the chosen layers in a forward pass, while the context is open.

    Args:
        model: the network; hooks are attached to it while the context is open.
        names: modules whose inputs are read; if a module is called twice, its first call is read.
        units: every activation, or the mean over each channel's positions.
        temperature: divisor of the output.
        masks: dropout filter from `draw_filter`: the kept units by layer name and for `input`. Kept units are scaled up
            as in training; the others are set to zero and are not read.

    >>> network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> with UnitReader(network, ["2"]) as reader:
    ...     [tuple(layer.shape) for layer in reader.read(torch.ones(5, 2))]
    [(5, 3), (5, 1)]
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        *,
        units: Units = "full",
        temperature: float = 1.0,
        masks: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.model = model
        self.names = (*names, OUTPUT)
        self._units = units
        self._temperature = temperature
        self._masks = masks or {}
        self._read: dict[str, Tensor] = {}

    def attach(self) -> Iterator[RemovableHandle]:
        """Register a hook at each layer."""
        for name in self.names[:-1]:
            yield self.model.get_submodule(name).register_forward_pre_hook(self._hook(name))

    def close(self) -> None:
        """Remove every hook and discard the units that were read."""
        super().close()
        self._read = {}

    def read(self, inputs: Tensor) -> list[Tensor]:
        """Run `inputs` `(batch, *shape)` and return each layer's units `(batch, units)` in float32, the output last.

        Raises:
            ModelError: the network does not return class logits `(batch, classes)`, or did not call a layer.
        """
        self._read = {}
        mask = self._masks.get(INPUT)
        returned = self.model((inputs if mask is None else _masked(inputs, mask, from_end=False)).clone())
        outputs = named_outputs(returned).values()
        logits = next((output for output in outputs if output.ndim == 2), None)  # noqa: PLR2004  (batch, classes)
        if logits is None:
            raise ModelError("A record needs a classifier, but the network does not return logits (batch, classes).")
        missing = [name for name in self.names[:-1] if name not in self._read]
        if missing:
            raise ModelError(f"The forward pass did not call the recorded layers {missing}. Record the model again.")
        read, self._read = self._read, {}
        return [*(read[name] for name in self.names[:-1]), logits.float() / self._temperature]

    def _hook(self, name: str) -> Any:
        def keep(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
            values = plain(arguments[0]) if arguments else None
            if values is None or name in self._read:
                return None
            last = isinstance(module, nn.Linear)  # a token's features are the last axis, an image's channels the first
            mask = self._masks.get(name)
            kept = values if mask is None else _masked(values, mask, from_end=last)
            units = unit_values(kept, self._units, from_end=last)
            self._read[name] = units if mask is None else units[:, mask.flatten()]
            return None if mask is None else (kept, *arguments[1:])

        return keep


def unit_values(values: Tensor, units: Units, *, from_end: bool) -> Tensor:
    """Return the units `(batch, units)` of an activation `(batch, *shape)`.

    >>> image = torch.arange(8.0).view(1, 2, 2, 2)
    >>> unit_values(image, "channel", from_end=False)
    tensor([[1.5000, 5.5000]])
    """
    values = values.float()
    if units == "full":
        return values.flatten(1)
    return (values.flatten(1, -2).mean(1) if values.ndim > 2 else values) if from_end else _channel_means(values)  # noqa: PLR2004


def _channel_means(values: Tensor) -> Tensor:
    return values.flatten(2).mean(2) if values.ndim > 2 else values  # noqa: PLR2004  (batch, channels, *places)


def _masked(values: Tensor, mask: Tensor, *, from_end: bool) -> Tensor:
    """Zero the units that the mask `(*shape)` or `(channels,)` excludes, and scale up the others."""
    share = float(mask.float().mean())
    if mask.shape != values.shape[1:] and not from_end:
        mask = mask.view(-1, *(1,) * (values.ndim - 2))
    return values * mask / share


def channel_count(layer: Layer) -> int:
    """Return the number of units of an image layer with one unit per channel.

    >>> channel_count(Layer("conv", (6, 14, 14), 1176, True))
    6
    """
    return layer.shape[0] if len(layer.shape) > 1 else math.prod(layer.shape)
