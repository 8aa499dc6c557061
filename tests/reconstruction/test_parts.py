"""The pieces of the reconstruction: fake quantization, rounding, and the blocks that are found."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dfq_plugins.errors import UsageError
from dfq_plugins.quantization.reconstruction_step import reconstruction_options
from dfq_plugins.reconstruction.fake_quantize import best_scale, fake_quantize, mixed
from dfq_plugins.reconstruction.options import ReconstructionOptions
from dfq_plugins.reconstruction.rounding import LearnedWeight
from dfq_plugins.types import QuantizerHandle


class Handle(QuantizerHandle):
    """Four bits, symmetric, with a scale that is a tensor."""

    def __init__(self, scale: torch.Tensor) -> None:
        super().__init__("weight", lowest=-7, highest=7, fixed=False)
        self.value = scale

    def scale(self) -> torch.Tensor:
        return self.value.clone()

    def set_scale(self, scale: torch.Tensor) -> None:
        self.value.copy_(scale)

    def replaced(self, quantize: Any) -> Any:
        raise NotImplementedError


def weight() -> torch.Tensor:
    return torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0))


def test_the_gradient_of_the_scale_is_that_of_the_step() -> None:
    """LSQ: round(x/s) - x/s inside, the limit outside; against the difference of the rounded values."""
    values = torch.tensor([0.3, -1.1, 9.0, -9.0], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    fake_quantize(values, scale, -4, 3).sum().backward()
    expected = (1 - 0.6) + (-2 + 2.2) + 3 - 4
    assert scale.grad is not None
    assert scale.grad.item() == pytest.approx(expected)
    assert values.grad is not None
    assert values.grad.tolist() == [1, 1, 0, 0]


def test_each_value_is_dropped_with_the_probability() -> None:
    drawn = mixed(torch.zeros(10_000), torch.ones(10_000), 0.3, torch.Generator().manual_seed(0))
    assert drawn.mean().item() == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize("shape", [(6, 1, 1, 1), (1, 1, 1, 1), ()])
def test_the_best_scale_beats_that_of_the_largest_weight(shape: tuple[int, ...]) -> None:
    values = weight()
    widest = values.abs().amax() / 3 * torch.ones(shape)
    best = best_scale(values, widest, -3, 3)
    assert best.shape == widest.shape

    def error(scale: torch.Tensor) -> float:
        return float(((values / scale).round().clamp(-3, 3) * scale - values).abs().pow(2.4).sum())

    assert error(best) < error(widest)


def test_a_channel_of_zeros_keeps_its_scale() -> None:
    values = weight()
    values[2] = 0
    scale = torch.full((6, 1, 1, 1), 0.25)
    assert best_scale(values, scale, -3, 3)[2].item() == 0.25


def test_learning_starts_at_the_float_weight_and_ends_on_integers() -> None:
    values, scale = weight().clamp(-1, 1), torch.full((6, 1, 1, 1), 1 / 7)
    learned = LearnedWeight(values, scale, Handle(scale), learned_rounding=True)
    assert torch.allclose(learned(), values, atol=1e-5)
    assert torch.equal(learned.integers(), (values / scale).round().clamp(-7, 7))
    assert learned.rounding is not None
    with torch.no_grad():
        learned.rounding.fill_(5.0)
    assert learned.penalty(2.0).item() == 0
    assert torch.allclose(learned(), learned.integers() * scale)
    assert torch.equal(learned.integers(), ((values / scale).floor() + 1).clamp(-7, 7))


def test_options_are_checked() -> None:
    assert reconstruction_options(given=False) is None
    assert reconstruction_options(given=True) == ReconstructionOptions()
    assert reconstruction_options({"steps": "7"}).steps == 7  # type: ignore[union-attr]
    for wrong in ({"steps": 0}, {"drop": 1.5}, {"step": 3}, {"warm_up": 1}):
        with pytest.raises(UsageError, match="reconstruction"):
            reconstruction_options(wrong)


def test_rates_follow_the_number_of_steps() -> None:
    few, many = (ReconstructionOptions().rates(steps) for steps in (100, 1000))
    assert [one / other for one, other in zip(few, many, strict=True)] == pytest.approx([10, 10, 10])
