"""Loss terms, against NumPy and SciPy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from scipy import ndimage, special

from dfq_plugins.synthesis import terms as objectives

if TYPE_CHECKING:
    from collections.abc import Callable

SHAPES = [(2, 3, 11), (2, 3, 9, 12), (2, 1, 5, 6, 7)]
PRIORS = [objectives.total_variation, objectives.blur_difference, objectives.squared_norm]


def values(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def test_class_logit_is_the_negative_mean_of_the_wanted_logits() -> None:
    logits, labels = values((6, 5)), np.array([0, 4, 2, 2, 1, 3])
    found = objectives.class_logit(torch.from_numpy(logits), torch.from_numpy(labels))
    assert found.item() == pytest.approx(-np.mean([logits[i, label] for i, label in enumerate(labels)]))


def test_cross_entropy_equals_scipy() -> None:
    logits, labels = 5 * values((6, 5)), np.array([0, 4, 2, 2, 1, 3])
    expected = np.mean(special.logsumexp(logits, axis=1) - logits[np.arange(6), labels])
    found = objectives.class_cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels))
    assert found.item() == pytest.approx(expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_total_variation_sums_mean_squared_differences_over_axes(shape: tuple[int, ...]) -> None:
    array = values(shape)
    expected = sum(np.mean(np.diff(array, axis=axis) ** 2) for axis in range(2, len(shape)))
    assert objectives.total_variation(torch.from_numpy(array)).item() == pytest.approx(expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_blur_difference_equals_scipy_gaussian_filter(shape: tuple[int, ...]) -> None:
    array = values(shape)
    blurred = array
    for axis in range(2, len(shape)):
        blurred = ndimage.gaussian_filter1d(blurred, 1.0, axis=axis, mode="mirror", radius=2)
    expected = np.mean((array - blurred) ** 2)
    assert objectives.blur_difference(torch.from_numpy(array)).item() == pytest.approx(expected)


def test_squared_norm_is_the_mean_square() -> None:
    array = values((3, 2, 4, 4))
    assert objectives.squared_norm(torch.from_numpy(array)).item() == pytest.approx(np.mean(array**2))


@pytest.mark.parametrize("prior", [objectives.total_variation, objectives.blur_difference])
def test_smoothness_priors_prefer_ramps_to_noise_and_ignore_inputs_without_space(
    prior: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    noise = torch.from_numpy(values((1, 1, 16, 16)))
    ramp = torch.linspace(-1, 1, 16, dtype=torch.float64).expand(1, 1, 16, 16) * noise.std()
    assert prior(ramp) < 0.1 * prior(noise)
    assert prior(torch.randn(4, 7, generator=torch.Generator().manual_seed(0))).item() == 0


@pytest.mark.parametrize("prior", PRIORS)
def test_priors_are_differentiable(prior: Callable[[torch.Tensor], torch.Tensor]) -> None:
    inputs = torch.from_numpy(values((1, 2, 4, 5))).requires_grad_()
    assert torch.autograd.gradcheck(prior, (inputs,))


@pytest.mark.parametrize("term", [objectives.class_logit, objectives.class_cross_entropy])
def test_class_terms_pull_the_wanted_logit_up(term: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    logits = torch.zeros(2, 3, requires_grad=True)
    term(logits, torch.tensor([1, 2])).backward()
    assert logits.grad is not None
    assert (logits.grad[[0, 1], [1, 2]] < 0).all()
    assert torch.autograd.gradcheck(
        lambda x: term(x, torch.tensor([1, 2])), (torch.from_numpy(values((2, 3))).requires_grad_(),)
    )
