"""Mean and covariance of the units per class, in one pass over any number of samples."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

BYTES = 8
"""Bytes per accumulated number: sums over many samples are kept in float64."""


class ClassMoments:
    """Count, mean and scatter matrix of each class, updated batch by batch.

    Source: Chan, Golub and LeVeque 1979, pairwise update of mean and sum of squares.

    Args:
        classes: number of classes.
        units: number of units per sample.

    >>> moments = ClassMoments(1, 1)
    >>> for batch in ([[1.0]], [[2.0], [6.0]]):
    ...     moments.add(torch.tensor(batch), torch.zeros(len(batch), dtype=torch.long))
    >>> moments.mean.item(), round(moments.covariance(0).item(), 4)
    (3.0, 4.6667)
    """

    def __init__(self, classes: int, units: int) -> None:
        self.counts = torch.zeros(classes, dtype=torch.float64)
        self.mean = torch.zeros(classes, units, dtype=torch.float64)
        self.scatter = torch.zeros(classes, units, units, dtype=torch.float64)

    def add(self, values: Tensor, labels: Tensor) -> None:
        """Add a batch: units `(batch, units)` and classes `(batch,)`, both on the CPU."""
        for label in torch.unique(labels).tolist():
            part = values[labels == label].double()
            former, size = float(self.counts[label]), len(part)
            mean = part.mean(0)
            centered, delta = part - mean, mean - self.mean[label]
            self.scatter[label].addmm_(centered.T, centered)
            self.scatter[label].addr_(delta, delta, alpha=former * size / (former + size))
            self.mean[label].add_(delta, alpha=size / (former + size))
            self.counts[label] += size

    def covariance(self, label: int) -> Tensor:
        """Return the biased covariance `(units, units)` of one class."""
        covariance: Tensor = self.scatter[label] / self.counts[label]
        return covariance


class LayerMoments:
    """The moments of all layers' units: jointly, if their covariance across layers is needed, or layer by layer.

    Args:
        sizes: number of units of each layer.
        classes: number of classes.
        joint: keep the covariance across layers.
    """

    def __init__(self, sizes: Sequence[int], classes: int, *, joint: bool) -> None:
        self.sizes = tuple(sizes)
        self.joint = joint
        self.groups = [ClassMoments(classes, size) for size in ([sum(sizes)] if joint else sizes)]

    @staticmethod
    def bytes_needed(sizes: Sequence[int], classes: int, *, joint: bool) -> int:
        """Return the bytes that the moments take, including workspace for the statistics computed from them.

        >>> LayerMoments.bytes_needed([10], 1, joint=False)
        4880
        """
        groups = [sum(sizes)] if joint else list(sizes)
        kept = sum(classes * (group * group + group) for group in groups)
        return BYTES * (kept + 5 * max(groups) ** 2)

    def add(self, units: Sequence[Tensor], labels: Tensor) -> None:
        """Add a batch: each layer's units `(batch, units)`, and classes `(batch,)`."""
        values = [part.detach().cpu() for part in units]
        parts = [torch.cat(values, 1)] if self.joint else values
        for group, part in zip(self.groups, parts, strict=True):
            group.add(part, labels)

    @property
    def counts(self) -> Tensor:
        """Samples of each class, `(classes,)`."""
        return self.groups[0].counts

    def span(self, layer: int) -> tuple[ClassMoments, slice]:
        """Return the moments that hold a layer's units, and their position."""
        if not self.joint:
            return self.groups[layer], slice(None)
        start, end = list(pairwise(accumulate(self.sizes, initial=0)))[layer]
        return self.groups[0], slice(start, end)

    def mean(self, layer: int) -> Tensor:
        """Return the class means `(classes, units)` of a layer."""
        group, place = self.span(layer)
        return group.mean[:, place]

    def covariance(self, layer: int, label: int) -> Tensor:
        """Return the covariance `(units, units)` of a layer within one class."""
        group, place = self.span(layer)
        return group.scatter[label][place, place] / self.counts[label]

    def second_moment(self) -> Tensor:
        """Return the mean outer product of all layers' units `(units, units)` over all samples; needs `joint`."""
        group = self.groups[0]
        weighted = group.counts[:, None] * group.mean
        moment: Tensor = group.scatter.sum(0).addmm_(group.mean.T, weighted)
        return moment.div_(group.counts.sum())
