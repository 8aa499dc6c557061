"""Runs a set through its network once, and measures how good it is for calibration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dfq_plugins.data.calibration_data import as_calibration_data
from dfq_plugins.data.dataset import SyntheticDataset
from dfq_plugins.errors import DataError, ModelError
from dfq_plugins.host.registry import get_registry
from dfq_plugins.inputs import cloned, moved
from dfq_plugins.model_state import device_of, frozen_copy, preserve_global_state
from dfq_plugins.network.normalization import clamped_share, impossible
from dfq_plugins.network.origin import check_origin
from dfq_plugins.network.specification import resolve_spec
from dfq_plugins.network.trial import check_finite, require_numbers
from dfq_plugins.quality import ranges, teacher, verdict
from dfq_plugins.quality.inspection import Inspection, LayerQuality
from dfq_plugins.statistics.batch_norm import (
    functional_layers,
    pooled_moments,
    require_reached_layers,
    stored_statistics,
)
from dfq_plugins.statistics.requirements import require_batch_norm

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn

    from dfq_plugins.data.calibration_data import CalibrationData, InputBatches
    from dfq_plugins.host.registry import Registry
    from dfq_plugins.types import GivenSpec, Inputs, Specification

FEWEST_SAMPLES = 2
"""A single sample has no neighbor and no variance."""


def inspect(
    dataset: CalibrationData | Path | str,
    model: nn.Module,
    *,
    spec: GivenSpec | None = None,
    allow_other_network: bool = False,
    registry: Registry | None = None,
) -> Inspection:
    """Rate how good a set is for calibrating a model, without real data and without quantizing anything.

    Args:
        dataset: a `SyntheticDataset` or its folder, or any data that `quantize` accepts.
        model: the trained float network; not changed.
        spec: input specification; a synthetic data set provides its own.
        allow_other_network: only warn of data that was synthesized from another network, instead of rejecting it.
        registry: registry to look up plugins in; None uses the installed plugins.

    Raises:
        DataError: there are fewer than two samples, they have the wrong shape or are not finite, or a synthetic set was
            made from another model.
        ModelError: the model is not finite or does not accept the samples.

    >>> from dfq_plugins.demo.network import digits_network, DIGITS_SPEC
    >>> noise = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    >>> inspect(noise, digits_network(), spec=DIGITS_SPEC).verdict
    'more samples or iterations needed'
    """
    data = SyntheticDataset.open(dataset) if isinstance(dataset, (str, Path)) else dataset
    with preserve_global_state(seed=0):
        network = frozen_copy(model)
        check_finite(network)
        check_origin(data, network, allow_other_network=allow_other_network)
        samples = as_calibration_data(data, spec)
        known = resolve_spec(network, samples.spec, registry or get_registry(), shape=samples.shape)
        samples.check(known)
        if len(samples) < FEWEST_SAMPLES:
            raise DataError(
                f"An inspection compares samples with each other and needs at least {FEWEST_SAMPLES}, got "
                f"{len(samples)}. Give more; a calibration set has hundreds."
            )
        require_numbers(network, next(iter(samples)), known)
        return _inspected(network, samples, known, _known_labels(data))


def _known_labels(data: object) -> Tensor | None:
    """Return the labels that a set was synthesized for; None if the labels are the network's predictions."""
    if not isinstance(data, SyntheticDataset) or data.manifest.labels != "conditional":
        return None
    parts = [batch.labels for batch in data.loader(256)]
    return torch.cat([part for part in parts if part is not None])


@torch.no_grad()
def _inspected(network: nn.Module, samples: InputBatches, spec: Specification, labels: Tensor | None) -> Inspection:
    why_not = _unusable_statistics(network, spec)
    names = () if why_not else require_reached_layers(network, spec)
    functional = functional_layers(network, spec, names) if names else set()
    rated = tuple(name for name in names if name not in functional)  # their module's input is not what they normalize
    with teacher.TeacherHooks(network, spec.num_classes) as hook, ranges.RangeHooks(network, rated) as widths:
        given = (moved(batch, device_of(network)) for batch in samples)
        distances = _distances(network, given, spec, names)
    expected, observed = ranges.expected_ranges(network, rated), widths.ranges()
    layers = tuple(
        LayerQuality(name, *pair, expected.get(name), observed.get(name)) for name, pair in distances.items()
    )
    return verdict.judged(
        num_samples=len(samples),
        layers=layers,
        label_counts=_label_counts(hook.logits, labels),
        confidence=None if hook.logits is None else teacher.confidence(hook.logits),
        diversity=None if hook.features is None else teacher.diversity(hook.features),
        clamped=clamped_share(samples, spec),
        why_not=why_not,
        impossible=impossible(spec),
    )


def _unusable_statistics(network: nn.Module, spec: Specification) -> str:
    """Return why the network's statistics cannot be used; an empty string if they can."""
    try:
        require_batch_norm(network)
        require_reached_layers(network, spec)
    except ModelError as error:
        return str(error)
    return ""


def _distances(
    network: nn.Module, batches: Iterable[Inputs], spec: Specification, names: tuple[str, ...]
) -> dict[str, tuple[float, float]]:
    """Run every batch through the network once; return divergence and surprise of each layer."""
    if not names:
        for batch in batches:
            spec.run(network, cloned(batch))
        return {}
    stored = stored_statistics(network, spec, names)
    moments = pooled_moments(network, batches, spec, names)
    divergence = stored.per_layer(stored.divergence(moments.mean, moments.var))
    surprise = stored.per_layer(stored.surprise(moments.mean, moments.var))
    return {name: (divergence[name], surprise[name]) for name in divergence}


def _label_counts(logits: Tensor | None, labels: Tensor | None) -> tuple[int, ...]:
    """Return the number of samples per class; empty if the network is not a classifier."""
    if logits is None:
        return ()
    named = logits.argmax(1) if labels is None else labels.cpu()
    return tuple(named.bincount(minlength=logits.shape[1]).tolist())
