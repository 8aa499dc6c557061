"""The loss terms beside independent references, and the schedule."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import torch

from dfq_plugins.distillation import terms
from dfq_plugins.distillation.schedule import Clock, learning_rate_factor

RNG = torch.Generator().manual_seed(0)
STUDENT, TEACHER = (3 * torch.randn(6, 5, generator=RNG) for _ in range(2))
FEATURES = tuple(torch.randn(4, 3, 5, 6, generator=RNG) for _ in range(2))


def reference_kl(first: torch.Tensor, second: torch.Tensor, temperature: float) -> float:
    """KL of the first from the second, times the squared temperature."""
    p, q = (scipy.special.softmax(logits.double().numpy() / temperature, axis=1) for logits in (first, second))
    return float(scipy.special.rel_entr(p, q).sum(1).mean() * temperature**2)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_kl_is_that_of_scipy_with_the_teacher_first(temperature: float) -> None:
    found = terms.kl_divergence(STUDENT, TEACHER, temperature).item()
    assert found == pytest.approx(reference_kl(TEACHER, STUDENT, temperature), rel=1e-4)


def test_the_symmetrized_kl_adds_both_directions() -> None:
    expected = reference_kl(TEACHER, STUDENT, 2.0) + reference_kl(STUDENT, TEACHER, 2.0)
    assert terms.symmetrized_kl(STUDENT, TEACHER, 2.0).item() == pytest.approx(expected, rel=1e-4)


def test_feature_difference_does_not_depend_on_the_unit() -> None:
    student, teacher = FEATURES
    expected = np.mean((student.numpy() - teacher.numpy()) ** 2) / np.mean(teacher.numpy() ** 2)
    assert terms.feature_difference(student, teacher).item() == pytest.approx(expected, rel=1e-5)
    assert terms.feature_difference(7 * student, 7 * teacher).item() == pytest.approx(expected, rel=1e-5)
    assert terms.feature_difference(torch.ones(1, 2), torch.zeros(1, 2)).isfinite()


class TestOtherChannels:
    def test_the_map_is_that_of_least_squares(self) -> None:
        student, teacher = FEATURES[0], torch.randn(4, 7, 5, 6, generator=RNG)
        ours, theirs = (
            feature.numpy().swapaxes(0, 1).reshape(feature.shape[1], -1).T for feature in (student, teacher)
        )
        ours = np.hstack([ours, np.ones((len(ours), 1), dtype=np.float32)])
        expected = ours @ np.linalg.lstsq(ours, theirs, rcond=None)[0]
        found = terms.in_channels_of(student, teacher)
        assert found.shape == teacher.shape
        assert np.allclose(found.numpy().swapaxes(0, 1).reshape(7, -1).T, expected, atol=1e-4)

    def test_the_gradient_is_that_of_the_smallest_difference(self) -> None:
        student, teacher = FEATURES[0].double().requires_grad_(), torch.randn(4, 7, 5, 6, generator=RNG).double()

        def smallest(feature: torch.Tensor) -> torch.Tensor:
            return terms.feature_difference(terms.in_channels_of(feature, teacher), teacher)

        (gradient,) = torch.autograd.grad(smallest(student), student)
        direction, step = torch.randn(student.shape, generator=RNG).double(), 1e-4
        with torch.no_grad():
            rise = (smallest(student + step * direction) - smallest(student - step * direction)) / (2 * step)
        assert (gradient * direction).sum().item() == pytest.approx(rise.item(), rel=1e-3)

    def test_the_map_is_found_in_float32_also_where_a_loop_is_not(self) -> None:
        student, teacher = FEATURES[0], 0.5 * FEATURES[0][:, :2] + 100
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mapped = terms.in_channels_of(student, teacher)
        assert torch.allclose(mapped.float(), teacher, atol=1.0)  # the map itself is applied in bfloat16

    def test_equal_and_dead_channels_have_a_solution(self) -> None:
        student = torch.cat([FEATURES[0][:, :1]] * 2 + [torch.zeros(4, 1, 5, 6)], dim=1)
        mapped = terms.in_channels_of(student, FEATURES[1][:, :2])
        assert mapped.isfinite().all()


def test_attention_distance_is_zhus() -> None:
    distances = []
    for student, teacher in zip(*(feature.numpy() for feature in FEATURES), strict=True):
        maps = [(feature**2).mean(0).ravel() for feature in (student, teacher)]
        distances.append(np.linalg.norm(maps[0] / np.linalg.norm(maps[0]) - maps[1] / np.linalg.norm(maps[1])))
    assert terms.attention_distance(*FEATURES).item() == pytest.approx(np.mean(distances), rel=1e-5)


def test_attention_distance_has_a_gradient_where_both_agree() -> None:
    feature = FEATURES[0].clone().requires_grad_()
    terms.attention_distance(feature, FEATURES[0]).backward()
    assert feature.grad is not None
    assert feature.grad.isfinite().all()


def test_labels_may_be_shares() -> None:
    labels = torch.tensor([1, 2, 0, 4, 3, 1])
    shares = torch.nn.functional.one_hot(labels, 5).float()
    assert terms.hard_labels(STUDENT, labels).item() == pytest.approx(terms.hard_labels(STUDENT, shares).item())


def test_no_warm_up_starts_at_the_full_rate() -> None:
    assert learning_rate_factor(0.0, 0.0) == 1.0
    assert learning_rate_factor(1.0, 0.0) == pytest.approx(0.0)


def test_the_clock_compresses_the_schedule_and_never_stretches_it() -> None:
    time = [100.0]
    clock = Clock(10, 5.0, elapsed=1.0, now=lambda: time[0])
    assert clock.seconds == 1.0
    assert clock.progress(5) == 0.5  # the steps are ahead
    time[0] += 3.0
    assert clock.progress(5) == pytest.approx(0.8)  # the clock is ahead
    time[0] += 30.0
    assert clock.progress(5) == 1.0
    assert Clock(10, None, now=lambda: time[0]).progress(20) == 1.0
