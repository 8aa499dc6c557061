"""Gaussian noise on class moments, calibrated to a privacy budget.

For each class, the record releases the number of samples, the sum of their vectors of units, and the sum of the outer
products. All vectors are clipped to length 1 (in units of `clip_norm`). Adding or removing one sample changes one
class's count by 1, its sum by a vector of length at most 1 and its products by a matrix of Frobenius norm at most 1: in
total by at most `sqrt(3)`. Means, covariances, Cholesky factors and spectral coefficients are computed from the noisy
sums.
"""

from __future__ import annotations

import math
import secrets
from typing import TYPE_CHECKING

import torch

from dfq_plugins.recording.factors import positive_part

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from dfq_plugins.recording.info import NoiseRecord
    from dfq_plugins.recording.moments import ClassMoments, LayerMoments

_HALVINGS = 200


def failure_probability(sigma: float, epsilon: float, sensitivity: float) -> float:
    """Return the smallest delta for which Gaussian noise is (epsilon, delta)-differentially private.

    Source: Balle and Wang 2018, Improving the Gaussian Mechanism, theorem 8.
    """
    shift, half = epsilon * sigma / sensitivity, sensitivity / (2 * sigma)
    return _normal_cdf(half - shift) - math.exp(epsilon + _log_normal_cdf(-half - shift))


def noise_multiplier(epsilon: float, delta: float, sensitivity: float) -> float:
    """Return the smallest standard deviation of Gaussian noise that is (epsilon, delta)-differentially private.

    >>> round(noise_multiplier(1.0, 1e-5, 1.0), 2)
    3.73
    """
    low, high = 0.0, 1.0
    while failure_probability(high, epsilon, sensitivity) > delta:
        low, high = high, 2 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if failure_probability(middle, epsilon, sensitivity) > delta:
            low = middle
        else:
            high = middle
    return high


def sensitivity(parts: int) -> float:
    """Return the most that one sample changes the counts, and the sums and products of `parts` sets of moments.

    >>> round(sensitivity(1) ** 2)
    3
    """
    return math.sqrt(1 + 2 * parts)


def clipped(units: Sequence[Tensor], norm: float) -> list[Tensor]:
    """Clip the samples `(batch, units)` of all layers, concatenated to one vector, to a length of at most `norm`."""
    length = torch.stack([part.square().sum(1) for part in units]).sum(0).sqrt()
    scale = (norm / length.clamp_min(1e-30)).clamp_max(1)[:, None]
    return [part * scale for part in units]


def add_noise(parts: Sequence[LayerMoments], noise: NoiseRecord, rng: torch.Generator | None = None) -> None:
    """Add the noise to all moments, in place.

    Args:
        parts: the moments of the network and of each of its dropout filters, over the same samples.
        noise: amount of noise.
        rng: source of the noise; None uses a secret seed. Anyone who knows the seed can remove the noise.
    """
    rng = rng or torch.Generator().manual_seed(secrets.randbits(63))
    exact = parts[0].counts.clone()
    noisy = exact + noise.multiplier * torch.randn(exact.shape, generator=rng, dtype=torch.float64)
    noisy.clamp_(min=1)
    for group in (group for part in parts for group in part.groups):
        _perturb(group, exact, noisy, noise, rng)


def _perturb(group: ClassMoments, exact: Tensor, noisy: Tensor, noise: NoiseRecord, rng: torch.Generator) -> None:
    for label, (count, wanted) in enumerate(zip(exact.tolist(), noisy.tolist(), strict=True)):
        total = count * group.mean[label]
        products = torch.addr(group.scatter[label], group.mean[label], total)
        total += noise.multiplier * noise.clip_norm * _draw(total.shape, rng)
        upper = _draw(products.shape, rng).triu_()
        products += noise.multiplier * noise.clip_norm**2 * (upper + upper.triu(1).T)
        mean = total / wanted
        group.mean[label] = mean
        group.scatter[label] = wanted * positive_part(products / wanted - torch.outer(mean, mean))
    group.counts.copy_(noisy)


def _draw(shape: torch.Size, rng: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=rng, dtype=torch.float64)


def _normal_cdf(value: float) -> float:
    """Return the cumulative distribution function of the standard normal distribution."""
    return 0.5 * math.erfc(-value / math.sqrt(2))


def _log_normal_cdf(value: float) -> float:
    """Return the logarithm of the cumulative distribution function, even if its value underflows."""
    below = _normal_cdf(value)
    if below > 0:
        return math.log(below)
    # Asymptotic series of the tail: accurate to a relative 1e-3 where erfc underflows, beyond 38.
    return -value * value / 2 - math.log(-value * math.sqrt(2 * math.pi))
