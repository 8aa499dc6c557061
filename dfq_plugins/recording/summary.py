"""Converts moments to the contents of a record: class means, Cholesky factors, spectral coefficients."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from dfq_plugins.recording.factors import factor, pack
from dfq_plugins.recording.graph import consecutive_edges, layer_places, strongest_waves

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from dfq_plugins.recording.moments import LayerMoments
    from dfq_plugins.recording.options import RecordingOptions


def summarize(
    moments: LayerMoments, options: RecordingOptions, dropout: int | None = None
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return the tensors of the requested statistics, and the largest jitter of each statistic that needed it.

    Args:
        moments: moments of all layers, the output last.
        options: the statistics to record.
        dropout: index of the dropout filter of these moments, which are stored under its name; None for no filter.
    """
    writer = _Writer(len(moments.counts))
    prefix = "" if dropout is None else f"dropout.{dropout}."
    if "top" in options.statistics and dropout is None:
        _add_layer(writer, moments, "top", len(moments.sizes) - 1)
    if "all" in options.statistics:
        for layer in range(len(moments.sizes)):
            _add_layer(writer, moments, f"{prefix}all.{layer}", layer)
    if options.spectral and dropout is None:
        second = moments.second_moment()
        weights = second if options.graph == "co-activation" else _mean_products(moments)
        if "spectral" in options.statistics:
            waves = strongest_waves(consecutive_edges(weights, moments.sizes), second, options.coefficients)
            writer.tensors["spectral.basis"] = waves.float()
            _add_coefficients(writer, moments, "spectral", waves)
        if "spectral-pairs" in options.statistics:
            pairs = pair_waves(weights, second, moments.sizes, options.coefficients)
            writer.tensors |= {f"pairs.{number}.basis": waves.float() for number, (_, waves) in enumerate(pairs)}
            _add_coefficients(writer, moments, "pairs", _embed_waves(pairs, sum(moments.sizes)))
    return writer.tensors, writer.jitter


def pair_waves(weights: Tensor, second: Tensor, sizes: Sequence[int], share: float) -> list[tuple[slice, Tensor]]:
    """Return, for each pair of consecutive layers, the position of its units and the strongest waves of its graph.

    Args:
        weights: weight of each edge `(units, units)`.
        second: mean outer product of the activations `(units, units)`.
        sizes: number of units of each layer.
        share: number of waves to keep, as a fraction of a pair's units.
    """
    found = []
    for (first, last), pair in zip(pairwise(layer_places(sizes)), pairwise(sizes), strict=True):
        place = slice(first.start, last.stop)
        edges = consecutive_edges(weights[place, place], pair)
        found.append((place, strongest_waves(edges, second[place, place], share)))
    return found


def _embed_waves(pairs: Sequence[tuple[slice, Tensor]], units: int) -> Tensor:
    """Return the waves of all pairs as columns over the units of all layers, `(units, kept)`."""
    columns = []
    for place, waves in pairs:
        column = waves.new_zeros(units, waves.shape[1])
        column[place] = waves
        columns.append(column)
    return torch.cat(columns, 1)


def _mean_products(moments: LayerMoments) -> Tensor:
    group = moments.groups[0]
    mean = (group.counts @ group.mean) / group.counts.sum()
    return torch.outer(mean, mean)


def _add_layer(writer: _Writer, moments: LayerMoments, name: str, layer: int) -> None:
    writer.add(name, moments.mean(layer), lambda label: moments.covariance(layer, label))


def _add_coefficients(writer: _Writer, moments: LayerMoments, name: str, waves: Tensor) -> None:
    """Add the coefficients' class means and covariances, which are linear functions of those of the units."""
    group = moments.groups[0]
    writer.add(name, group.mean @ waves, lambda label: waves.T @ (group.covariance(label) @ waves))


class _Writer:
    """Collects tensors and the jitter that their factors needed."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.tensors: dict[str, Tensor] = {}
        self.jitter: dict[str, float] = {}

    def add(self, name: str, mean: Tensor, covariance: Callable[[int], Tensor]) -> None:
        factors = []
        for label in range(self.classes):
            lower, jitter = factor(covariance(label))
            factors.append(pack(lower).float())
            if jitter:
                self.jitter[name] = max(jitter, self.jitter.get(name, 0.0))
        self.tensors[f"{name}.mean"] = mean.float()
        self.tensors[f"{name}.factor"] = torch.stack(factors)
