"""Whether a synthetic set was made from the network that it is used with: one check for every command."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import torch

from dfq_plugins.data.dataset import SyntheticDataset
from dfq_plugins.errors import DataError, DfqWarning
from dfq_plugins.network.agreement import outputs_of
from dfq_plugins.network.digest import model_digest
from dfq_plugins.network.file_network import FileNetwork
from dfq_plugins.statistics.batch_norm import statistics_layers, untrained
from dfq_plugins.storage.canonical_json import short_digest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from dfq_plugins.types import Batch, Specification

_COMPARED_SAMPLES = 8

_SAME_DECIBELS = 30.0
"""Signal-to-noise ratio in dB from which outputs count as those of the same network: half precision and other
processors are far above it, another activation function is far below."""


class DataOriginWarning(DfqWarning):
    """A synthetic set was made from another network than the one that it is used with."""


class UntrainedNetworkWarning(DfqWarning):
    """The BatchNorm statistics of a network are those of a new one: its weights were probably not loaded."""


def check_origin(data: object, network: nn.Module, *, allow_other_network: bool) -> None:
    """Reject a synthetic set that was made from another network: other weights, or another forward pass.

    A file does not hold the weights as the network did that made the set, so its outputs alone are compared, where they
    have the same names.

    Args:
        data: any data; only a `SyntheticDataset` is checked.
        network: a private copy in eval mode.
        allow_other_network: warn instead.

    Raises:
        DataError: the set was made from another network.
    """
    if not isinstance(data, SyntheticDataset):
        return
    fault = _other_values(network, data) if isinstance(network, FileNetwork) else _other_network(network, data)
    if not fault:
        return
    message = f"The data in {data.folder} was made from another model: {fault}."
    if not allow_other_network:
        raise DataError(
            f"{message} Give the model that it was made from, with the same weights (--weights on the command line), "
            "or synthesize data from this one. To use it all the same: allow_other_network=True, or "
            "--allow-other-network."
        )
    warnings.warn(f"{message} Its inputs match the other model's statistics.", DataOriginWarning, stacklevel=3)


def _other_network(network: nn.Module, data: SyntheticDataset) -> str:
    theirs, ours = data.manifest.model_digest, model_digest(network)
    if theirs != ours:
        return f"its digest is {short_digest(theirs)}, and the given model's is {short_digest(ours)}"
    return different_outputs(network, _first_samples(data), data.spec)


def _other_values(network: nn.Module, data: SyntheticDataset) -> str:
    samples = _first_samples(data)
    found = outputs_of(network, samples.inputs, data.spec)
    shared = {name: value for name, value in (samples.outputs or {}).items() if name in found}
    same_shapes = all(found[name].shape == value.shape for name, value in shared.items())
    decibels = _decibels(shared, found) if same_shapes else -math.inf
    if decibels >= _SAME_DECIBELS:
        return ""
    return f"the file returns other outputs for the same inputs (signal-to-noise ratio {decibels:.0f} dB)"


def different_outputs(network: nn.Module, samples: Batch, spec: Specification) -> str:
    """Return how a network's outputs differ from those that a set stores; empty if they are the same.

    Equal weights do not make equal networks: a changed forward pass or a hook shows only in the outputs. A network that
    answers differently each time is not compared.

    Args:
        network: a private copy in eval mode.
        samples: samples of the set with the outputs of the network that made it.
        spec: the specification of the set.
    """
    if not samples.outputs:
        return ""
    found, again = (outputs_of(network, samples.inputs, spec) for _ in range(2))
    for name, stored in samples.outputs.items():
        if name not in found or found[name].shape != stored.shape:
            return f"it has no output {name!r} of shape {tuple(stored.shape[1:])} any more, with the same weights"
    decibels = _decibels(samples.outputs, found)
    if decibels >= _SAME_DECIBELS or _decibels(found, again) < _SAME_DECIBELS:
        return ""
    return (
        f"with the same weights, it returns other outputs for the same inputs (signal-to-noise ratio {decibels:.0f} "
        "dB), so its forward pass or a hook has changed"
    )


def warn_if_untrained(network: nn.Module) -> None:
    """Warn of a network whose BatchNorm layers all hold their initial statistics."""
    layers = statistics_layers(network).values()
    if layers and all(untrained(layer) for layer in layers):
        warnings.warn(
            f"All {len(layers)} BatchNorm layers of {type(network).__name__} still hold their initial statistics (mean "
            "0, variance 1): it was never trained, or its weights were not loaded (--weights on the command line).",
            UntrainedNetworkWarning,
            stacklevel=3,
        )


def _first_samples(data: SyntheticDataset) -> Batch:
    first: Batch = next(iter(data.loader(_COMPARED_SAMPLES)))
    return first


def _decibels(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> float:
    """Return the ratio of the worst output."""
    return min((_ratio(output.double(), found[name].double()) for name, output in expected.items()), default=math.inf)


def _ratio(expected: Tensor, found: Tensor) -> float:
    signal, noise = (float(torch.sum(part.square())) for part in (expected, expected - found))
    return math.inf if noise == 0 else 10 * math.log10(signal / noise) if signal > 0 else -math.inf
