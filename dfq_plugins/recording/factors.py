"""Cholesky factors of covariances, including singular ones, and samples of the Gaussians that they describe."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

FIRST_JITTER = 1e-9
LAST_JITTER = 1e-1
ABSOLUTE_JITTER = 1e-12
"""Variance added if there is none at all, as in a class with one sample."""


def factor(covariance: Tensor) -> tuple[Tensor, float]:
    """Return the lower Cholesky factor of a covariance, and the jitter added to its diagonal.

    A regular covariance needs no jitter. A singular one (units that are always zero, fewer samples than units) gets the
    smallest power of ten, starting at 1e-9, times its mean variance that makes it regular.

    Args:
        covariance: `(units, units)`, symmetric, positive semidefinite up to rounding, float64.

    >>> lower, jitter = factor(torch.tensor([[4.0, 0.0], [0.0, 0.0]], dtype=torch.float64))
    >>> jitter, lower[0, 0].item() > 1.99
    (2e-09, True)
    """
    lower, failed = torch.linalg.cholesky_ex(covariance)
    if not int(failed):
        return lower, 0.0
    size = float(covariance.diagonal().mean())
    share = FIRST_JITTER
    while share <= LAST_JITTER:
        jitter = max(share * size, ABSOLUTE_JITTER)
        lower, failed = torch.linalg.cholesky_ex(covariance + jitter * torch.eye(len(covariance), dtype=torch.float64))
        if not int(failed):
            return lower, jitter
        share *= 10
    raise ValueError("a covariance is not positive semidefinite, or not finite")


def positive_part(covariance: Tensor) -> Tensor:
    """Return the nearest positive semidefinite matrix: negative eigenvalues, caused by noise, become zero.

    >>> positive_part(torch.tensor([[1.0, 0.0], [0.0, -2.0]]))
    tensor([[1., 0.],
            [0., 0.]])
    """
    values, vectors = torch.linalg.eigh(covariance)
    positive: Tensor = (vectors * values.clamp_min(0)) @ vectors.T
    return positive


def pack(lower: Tensor) -> Tensor:
    """Return the lower triangle of `(..., units, units)` row by row as `(..., units * (units + 1) / 2)`.

    >>> pack(torch.tensor([[1.0, 0.0], [2.0, 3.0]]))
    tensor([1., 2., 3.])
    """
    size = lower.shape[-1]
    rows, columns = torch.tril_indices(size, size)
    return lower[..., rows, columns]


def unpack(packed: Tensor) -> Tensor:
    """Return the matrix `(units, units)` from a vector that `pack` returned.

    >>> unpack(torch.tensor([1.0, 2.0, 3.0]))
    tensor([[1., 0.],
            [2., 3.]])
    """
    size = (math.isqrt(8 * len(packed) + 1) - 1) // 2
    lower = packed.new_zeros(size, size)
    rows, columns = torch.tril_indices(size, size)
    lower[rows, columns] = packed
    return lower


@dataclass(frozen=True)
class ClassGaussians:
    """One Gaussian per class.

    Args:
        mean: class means `(classes, units)`.
        packed: Cholesky factors from `pack`, `(classes, units * (units + 1) / 2)`.
    """

    mean: Tensor
    packed: Tensor

    def sample(self, labels: Tensor, rng: torch.Generator) -> Tensor:
        """Draw `mean + L z` for each of the classes `(batch,)`; the result is `(batch, units)` on the CPU."""
        noise = torch.randn(len(labels), self.mean.shape[1], generator=rng)
        drawn = self.mean[labels]
        for label in torch.unique(labels).tolist():
            chosen = labels == label
            drawn[chosen] += noise[chosen] @ unpack(self.packed[label]).T  # rows are samples: z L^T, not L z
        return drawn
