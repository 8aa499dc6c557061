"""Divergences between stored and observed per-channel statistics, as pure functions on tensors of equal shape."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import torch

if TYPE_CHECKING:
    from torch import Tensor

DivergenceName: TypeAlias = Literal["symmetrized-kl", "kl", "l2"]


def gaussian_kl(stored_mean: Tensor, stored_var: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the stored from the observed Gaussian, per channel.

    `KL(N(mu, var) || N(m, v)) = 0.5 * log(v / var) - 0.5 * (1 - (var + (mu - m)^2) / v)`.
    The observed variance is in the denominator, so collapsed samples are penalized heavily.
    Source: Haroush et al. 2020 (The Knowledge Within), BN-statistics scheme.

    Args:
        stored_mean: mean stored during training, shape `(channels,)`.
        stored_var: variance stored during training, positive; add the layer's eps to both variances.
        mean: observed mean.
        var: observed variance, positive.

    Returns:
        Divergence in nats, shape `(channels,)`; zero if both agree.

    >>> zero, one = torch.zeros(1), torch.ones(1)
    >>> gaussian_kl(zero, one, zero, one).item()
    0.0
    >>> gaussian_kl(zero, one, one, one).item()
    0.5
    """
    return 0.5 * (torch.log(var / stored_var) - 1 + (stored_var + (stored_mean - mean).square()) / var)


def symmetrized_kl(stored_mean: Tensor, stored_var: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """Mean of the Kullback-Leibler divergences in both directions between the stored and the observed Gaussian.

    The divergence of the stored from the observed Gaussian grows only with the logarithm of a variance that is too
    large, and that of the observed from the stored Gaussian in proportion to it. Without the latter, the first layers
    of a network whose inputs are optimized stay noisy.
    Source: Jeffreys 1946 (An invariant form for the prior probability in estimation problems), halved.

    >>> zero, one = torch.zeros(1), torch.ones(1)
    >>> symmetrized_kl(zero, one, one, one).item()
    0.5
    >>> large = torch.full((1,), 8.0)
    >>> round(gaussian_kl(zero, one, zero, large).item(), 2), round(symmetrized_kl(zero, one, zero, large).item(), 2)
    (0.6, 1.53)
    """
    forward = gaussian_kl(stored_mean, stored_var, mean, var)
    return 0.5 * (forward + gaussian_kl(mean, var, stored_mean, stored_var))


def squared_distance(stored_mean: Tensor, stored_var: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """Squared distance of the means plus squared distance of the standard deviations, per channel.

    Source: the BN-statistics loss of ZeroQ (Cai et al. 2020).

    >>> squared_distance(torch.zeros(1), torch.ones(1), torch.ones(1), torch.full((1,), 4.0)).item()
    2.0
    """
    return (stored_mean - mean).square() + (stored_var.sqrt() - var.sqrt()).square()


DIVERGENCES = {"symmetrized-kl": symmetrized_kl, "kl": gaussian_kl, "l2": squared_distance}
"""Divergences by their option name."""
