"""Divergences, against numerical integration and plain NumPy in double precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from dfq_plugins.statistics.divergences import DIVERGENCES, gaussian_kl, squared_distance, symmetrized_kl

CASES = [
    # stored mean, stored variance, mean, variance
    (0.0, 1.0, 0.0, 1.0),
    (0.0, 1.0, 0.7, 1.0),
    (-1.5, 0.25, -1.0, 0.5),
    (2.0, 4.0, -1.0, 0.5),
    (0.1, 0.01, 0.0, 9.0),
    (30.0, 100.0, 25.0, 64.0),
]


def integrated_kl(stored_mean: float, stored_var: float, mean: float, var: float) -> float:
    """Integrate p log(p / q) numerically; knows nothing of the closed form."""
    p, q = stats.norm(stored_mean, np.sqrt(stored_var)), stats.norm(mean, np.sqrt(var))
    low, high = stored_mean - 12 * np.sqrt(stored_var), stored_mean + 12 * np.sqrt(stored_var)

    def integrand(x: float) -> float:
        return float(p.pdf(x) * (p.logpdf(x) - q.logpdf(x)))

    value, error = integrate.quad(integrand, low, high, epsabs=1e-10, limit=200)
    assert error < 1e-7
    return float(value)


def double(*values: float) -> list[torch.Tensor]:
    return [torch.tensor([value], dtype=torch.float64) for value in values]


@pytest.mark.parametrize("case", CASES)
def test_kl_equals_the_integral_with_the_stored_gaussian_first(case: tuple[float, ...]) -> None:
    assert gaussian_kl(*double(*case)).item() == pytest.approx(integrated_kl(*case), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("case", CASES)
def test_symmetrized_kl_equals_the_mean_of_both_integrals(case: tuple[float, ...]) -> None:
    stored_mean, stored_var, mean, var = case
    expected = (integrated_kl(*case) + integrated_kl(mean, var, stored_mean, stored_var)) / 2
    assert symmetrized_kl(*double(*case)).item() == pytest.approx(expected, rel=1e-6, abs=1e-8)


def test_symmetrized_kl_punishes_excess_as_much_as_collapse() -> None:
    collapsed, excessive = symmetrized_kl(*double(0, 1, 0, 0.01)), symmetrized_kl(*double(0, 1, 0, 100))
    assert collapsed.item() == pytest.approx(excessive.item(), rel=1e-9)


def test_kl_is_not_symmetric_and_punishes_collapse_harder_than_excess() -> None:
    collapsed, excessive = gaussian_kl(*double(0, 1, 0, 0.01)), gaussian_kl(*double(0, 1, 0, 100))
    assert collapsed.item() == pytest.approx(integrated_kl(0, 1, 0, 0.01), rel=1e-6)
    assert collapsed.item() > 20 * excessive.item()


def test_squared_distance_equals_numpy() -> None:
    random = np.random.default_rng(0)
    stored_mean, mean = random.normal(size=(2, 50))
    stored_var, var = random.uniform(0.01, 9, size=(2, 50))
    expected = (stored_mean - mean) ** 2 + (np.sqrt(stored_var) - np.sqrt(var)) ** 2
    found = squared_distance(*map(torch.from_numpy, (stored_mean, stored_var, mean, var)))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergences_vanish_only_where_both_agree(name: str) -> None:
    random = np.random.default_rng(1)
    mean, var = torch.from_numpy(random.normal(size=40)), torch.from_numpy(random.uniform(0.1, 4, size=40))
    divergence = DIVERGENCES[name]
    assert divergence(mean, var, mean, var).abs().max() < 1e-15
    assert (divergence(mean, var, mean + 0.1, var) > 1e-4).all()
    assert (divergence(mean, var, mean, var * 1.2) > 1e-4).all()


@pytest.mark.parametrize("name", DIVERGENCES)
def test_gradients_equal_finite_differences(name: str) -> None:
    random = np.random.default_rng(2)
    stored = [torch.from_numpy(random.normal(size=5)), torch.from_numpy(random.uniform(0.5, 2, size=5))]
    mean = torch.from_numpy(random.normal(size=5)).requires_grad_()
    var = torch.from_numpy(random.uniform(0.5, 2, size=5)).requires_grad_()
    assert torch.autograd.gradcheck(lambda m, v: DIVERGENCES[name](*stored, m, v), (mean, var))
