"""Quantization noise of each layer: compares float and quantized outputs of modules with the same name."""

from __future__ import annotations

import math
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn

from dfq_plugins.inputs import cloned, count, moved, run_network, split
from dfq_plugins.model_state import device_of, frozen_copy, hooked

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor

    from dfq_plugins.types import Coverage, Inputs, Specification

CHUNK = 8
"""Samples per forward pass; small, because all outputs of the network are kept in memory."""

WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)  # noqa: SLF001  torch's common base of all convolutions

Calls: TypeAlias = "list[tuple[str, Tensor]]"
Energies: TypeAlias = dict[str, dict[str, list[float]]]
"""By layer and candidate: the energies of the float output and of the difference."""


@dataclass(frozen=True)
class LayerFidelity:
    """The quantization noise of one layer.

    Args:
        name: qualified name, the same in both networks.
        decibels: signal-to-quantization-noise ratio of its output; infinite if both agree exactly.
    """

    name: str
    decibels: float


@dataclass(frozen=True)
class Fidelity:
    """All layers that could be compared, the noisiest first, and the names that could not, each with the reason.

    Args:
        layers: in ascending order of their ratio.
        unmatched: name and reason of quantized operations without a counterpart.
        num_samples: number of samples compared.
    """

    layers: tuple[LayerFidelity, ...]
    unmatched: tuple[tuple[str, str], ...]
    num_samples: int


def decibels(signal: float, noise: float) -> float:
    """Return `10 * log10(signal / noise)` of two energies; minus infinity if one of them is not finite.

    >>> decibels(100.0, 1.0), decibels(1.0, 0.0), decibels(math.nan, math.nan)
    (20.0, inf, -inf)
    """
    if not (math.isfinite(signal) and math.isfinite(noise)):
        return -math.inf
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


@torch.no_grad()
def layer_fidelity(
    model: nn.Module, quantized: nn.Module, inputs: Inputs, coverage: Coverage, spec: Specification | None = None
) -> Fidelity:
    """Compare the outputs of modules with the same name in the float and the quantized network.

    `SQNR = 10 log10(sum(float^2) / sum((float - quantized)^2))`, over all values of all samples.

    Frameworks fold BatchNorm and activations into the preceding layer in different ways. A quantized layer's output is
    therefore compared with the float layer's output and with the outputs of the modules after it, up to the next layer
    with weights, each with and without a ReLU. The best match counts.

    Args:
        model: the float network; not changed.
        quantized: the framework's native model.
        inputs: `(samples, *shape)`, at least one sample.
        coverage: the layers that the framework quantized, by name.
        spec: says how both networks take several inputs; None means by keywords.
    """
    network = frozen_copy(model)
    known, found = dict(network.named_modules()), dict(quantized.named_modules())
    names = list(dict.fromkeys(layer.name for layer in coverage.quantized))
    matched = [name for name in names if name in known and name in found]
    energies: Energies = {}
    for chunk in split(inputs, CHUNK):
        with _recorded(network, known) as calls:
            run_network(network, moved(cloned(chunk), device_of(network)), spec)
        with _recorded(quantized, matched) as answers:
            run_network(quantized, moved(cloned(chunk), device_of(quantized)), spec)
        _add_energies(energies, answers, _stretches(calls, known))
    layers = [LayerFidelity(name, max(decibels(*pair) for pair in forms.values())) for name, forms in energies.items()]
    reasons = {name: _reason(name, known, found) for name in names if name not in energies}
    return Fidelity(tuple(sorted(layers, key=lambda layer: layer.decibels)), tuple(reasons.items()), count(inputs))


def _reason(name: str, known: dict[str, nn.Module], found: dict[str, nn.Module]) -> str:
    if name not in known:
        return "an operation that the framework inserted, or that is not a module in the float network"
    if name not in found:
        return "no module with this name in the quantized network"
    return "its output differs in shape or order from the float network, or it is never called"


@contextmanager
def _recorded(model: nn.Module, names: Iterable[str]) -> Iterator[Calls]:
    """Record the outputs of the named modules in the order of the calls."""
    calls: Calls = []
    with hooked(model.get_submodule(name).register_forward_hook(_recorder(name, calls)) for name in names):
        yield calls


def _recorder(name: str, calls: Calls) -> Any:
    def record(_module: nn.Module, _arguments: tuple[Any, ...], output: Any) -> None:
        value = as_float(output)
        if value is not None:
            calls.append((name, value))

    return record


def as_float(output: Any) -> Tensor | None:
    """Convert a layer's output to a float tensor: plain, a torch.ao quantized tensor, or Brevitas's record."""
    value = getattr(output, "value", output)
    if not isinstance(value, torch.Tensor):
        return None
    return (value.dequantize() if value.is_quantized else value).detach().float().cpu()


def _stretches(calls: Calls, modules: dict[str, nn.Module]) -> dict[str, list[Calls]]:
    """Return the outputs of each module call and of the calls after it, up to the next layer with weights."""
    stretches: dict[str, list[Calls]] = {}
    for position, (name, output) in enumerate(calls):
        stretch = [(name, output)]
        for later, value in calls[position + 1 :]:
            if isinstance(modules[later], WEIGHTED):
                break
            stretch.append((later, value))
        stretches.setdefault(name, []).append(stretch)
    return stretches


def _add_energies(energies: Energies, answers: Calls, stretches: dict[str, list[Calls]]) -> None:
    """Add one chunk's signal and noise energies to those of each candidate of each layer."""
    calls_so_far: Counter[str] = Counter()
    for name, answer in answers:
        candidates = stretches.get(name, [])[calls_so_far[name] :][:1]
        calls_so_far[name] += 1
        for later, value in chain.from_iterable(candidates):
            if value.shape == answer.shape:
                for form, wanted in ((later, value), (f"{later} and ReLU", value.relu())):
                    kept = energies.setdefault(name, {}).setdefault(form, [0.0, 0.0])
                    kept[0] += float(wanted.double().square().sum())
                    kept[1] += float((wanted - answer).double().square().sum())
