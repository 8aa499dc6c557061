"""Agreement of two networks, output by output, against plain NumPy; NaN never agrees."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dfq_plugins.errors import ModelError
from dfq_plugins.network.agreement import class_agreement, output_agreement

if TYPE_CHECKING:
    from collections.abc import Iterator


class Fixed(nn.Module):
    """Returns the same answer to everything."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, _batch: Tensor) -> Any:
        return self.answer


def compared(first: Any, second: Any, classes: int | None = None) -> Any:
    samples = len(first if isinstance(first, Tensor) else next(iter(first.values())))
    return output_agreement(Fixed(first), Fixed(second), [torch.zeros(samples, 1)], 100, classes)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(40,), (40, 1), (40, 5), (40, 2, 3), (40, 3, 4, 4)])
def test_values_have_a_ratio_and_a_correlation(shape: tuple[int, ...]) -> None:
    one, other = randn(*shape) + 2, randn(*shape) + 2 + 0.1 * randn(*shape, seed=1)
    (found,) = compared(one, other)
    first, second = one.double().numpy(), other.double().numpy()
    assert found.decibels == pytest.approx(10 * np.log10((first**2).sum() / ((first - second) ** 2).sum()), rel=1e-6)
    assert found.correlation == pytest.approx(np.corrcoef(first.ravel(), second.ravel())[0, 1], rel=1e-6)
    assert (found.kind, found.same_class, found.mean_iou, found.samples) == ("values", None, None, 40)
    assert (found.same_largest is not None) == (shape == (40, 5))
    assert math.isnan(class_agreement([found]))


def test_classes_are_counted_only_where_they_are_said() -> None:
    first, second = torch.eye(4), torch.eye(4)[[0, 1, 2, 0]]
    (said,) = compared(first, second, 4)
    assert (said.same_class, said.same_largest, said.kind) == (0.75, None, "classes")
    assert class_agreement([said]) == 0.75
    (unsaid,) = compared(first, second)
    assert (unsaid.same_class, unsaid.same_largest) == (None, 0.75)
    assert "same largest value for 3 of 4 samples" in str(unsaid)


def test_class_maps_have_a_share_of_pixels_and_a_mean_iou() -> None:
    one, other = randn(6, 3, 5, 5), randn(6, 3, 5, 5) + 0.7 * randn(6, 3, 5, 5, seed=1)
    (found,) = compared(one, other, 3)
    first, second = one.argmax(1).numpy(), other.argmax(1).numpy()
    assert found.same_class == pytest.approx((first == second).mean())
    ious = [((first == k) & (second == k)).sum() / ((first == k) | (second == k)).sum() for k in range(3)]
    assert found.mean_iou == pytest.approx(np.mean(ious))
    assert "of pixels, mean IoU" in str(found)


def test_every_output_has_figures_of_its_own() -> None:
    first = {"out": torch.eye(4), "boxes": randn(4, 2), "best": torch.zeros(4, dtype=torch.long)}
    second = {**first, "boxes": first["boxes"] * 0.9, "more": torch.zeros(4)}
    out, boxes = compared(first, second, 4)
    assert (out.name, out.same_class, out.decibels) == ("out", 1.0, 150.0)
    assert (boxes.name, boxes.decibels) == ("boxes", pytest.approx(20.0))
    with pytest.raises(ModelError, match=r"got out \(4,\), boxes \(2,\) values per sample from the teacher and out"):
        compared(first, {"out": torch.eye(4)})


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("both", [False, True])
def test_what_is_not_finite_agrees_with_nothing(value: float, both: bool) -> None:
    first, second = torch.eye(4), torch.eye(4)
    second[1] = value
    if both:
        first[1] = value
    (found,) = compared(first, second, 4)
    assert found.same_class == 0.75
    assert found.decibels == -math.inf
    assert math.isnan(found.correlation)
    assert found.non_finite == 1
    assert "NaN or infinity in 1 of 4 samples" in str(found)
    assert compared(first, second)[0].same_largest == 0.75


def test_few_samples_are_counted_and_called_too_few() -> None:
    classes = torch.arange(60) % 4
    few, many = torch.eye(4)[classes[:6]], torch.eye(4)[classes]
    (found,) = compared(few, few.roll(1, 0).where(torch.arange(6)[:, None] < 1, few), 4)
    assert "same class for 5 of 6 samples" in found.figures
    assert found.figures.endswith("too few samples to tell (6)")
    assert found.headline == ("5 of 6", ": too few to tell")
    (enough,) = compared(many, many, 4)
    assert enough.figures == "same class for 100.00% of samples, signal-to-noise ratio 150.0 dB"
    assert enough.headline == ("100.0%", "")
    (of_map,) = compared(randn(6, 3, 5, 5), randn(6, 3, 5, 5), 3)
    assert "same class for 100.00% of pixels" in of_map.figures
    assert of_map.figures.endswith("too few samples to tell (6)")


def test_several_batches_are_one() -> None:
    network = nn.Linear(3, 4)
    inputs = randn(10, 3)
    whole = output_agreement(network, nn.Sequential(network, nn.ReLU()), [inputs], 10, 4)
    parts = output_agreement(network, nn.Sequential(network, nn.ReLU()), inputs.split(3), 10, 4)
    assert whole[0].same_class == parts[0].same_class
    assert whole[0].decibels == pytest.approx(parts[0].decibels)


def test_it_reads_no_more_than_its_limit() -> None:
    def endless() -> Iterator[Tensor]:
        while True:
            yield torch.ones(4, 2)

    assert output_agreement(nn.Identity(), nn.Identity(), endless(), 10, 2)[0].samples == 12
