"""Augmentation: seeded, differentiable, for one to three spatial axes."""

from __future__ import annotations

import pytest
import torch

from dfq_plugins.statistics.augmentation import Augmentation, augment

SHAPES = [(2, 3, 16), (2, 3, 8, 10), (2, 1, 6, 5, 7)]
EVERYTHING = Augmentation(jitter=2, flip=True, crop=0.5)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, generator=rng(99), dtype=torch.float64)


@pytest.mark.parametrize("shape", [*SHAPES, (4, 7)])
def test_nothing_happens_by_default_and_no_draw_is_made(shape: tuple[int, ...]) -> None:
    generator = rng()
    before = generator.get_state()
    inputs = batch(shape)
    assert augment(inputs, Augmentation(), generator) is inputs
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("shape", SHAPES)
def test_same_seed_same_result_and_other_seeds_others(shape: tuple[int, ...]) -> None:
    inputs = batch(shape)
    first = augment(inputs, EVERYTHING, rng(3))
    assert first.shape == inputs.shape
    assert torch.equal(first, augment(inputs, EVERYTHING, rng(3)))
    assert any(not torch.equal(first, augment(inputs, EVERYTHING, rng(seed))) for seed in range(4, 8))


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_equal_finite_differences(shape: tuple[int, ...]) -> None:
    inputs = batch((1, 1, *(min(size, 5) for size in shape[2:]))).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: augment(x, EVERYTHING, rng(5)), (inputs,))


@pytest.mark.parametrize("shape", SHAPES)
def test_jitter_rolls_by_at_most_its_reach_on_each_axis(shape: tuple[int, ...]) -> None:
    inputs = torch.zeros(1, 1, *shape[2:])  # every axis has five places or more
    inputs[(0, 0, *(2 for _ in shape[2:]))] = 1
    places = [augment(inputs, Augmentation(jitter=2), rng(seed))[0, 0].nonzero()[0] for seed in range(40)]
    shifts = torch.stack(places) - 2
    assert (shifts.amin(0) == -2).all()
    assert (shifts.amax(0) == 2).all()
    assert len(shifts.unique(dim=0)) > 4


def test_flip_mirrors_the_last_axis_of_each_sample_about_half_of_the_time() -> None:
    inputs = batch((60, 1, 4, 6))
    flipped = 0
    for original, result in zip(inputs, augment(inputs, Augmentation(flip=True), rng()), strict=True):
        mirrored = torch.equal(result, original.flip(-1))
        assert mirrored or torch.equal(result, original)
        flipped += mirrored
    assert 15 < flipped < 45


@pytest.mark.parametrize("shape", SHAPES)
def test_crop_enlarges_a_part_from_anywhere(shape: tuple[int, ...]) -> None:
    ramp = torch.linspace(0, 1, shape[-1]).expand(1, 1, *shape[2:])
    crops = [augment(ramp, Augmentation(crop=0.5), rng(seed)) for seed in range(30)]
    assert {crop.shape for crop in crops} == {ramp.shape}
    spans = torch.stack([crop.amax() - crop.amin() for crop in crops])
    assert spans.min() > 0.3
    assert spans.max() > 0.9
    assert spans.std() > 0.05
    starts = torch.stack([crop.amin() for crop in crops])
    assert starts.min() == 0
    assert starts.max() > 0.2


def test_inputs_without_space_stay_as_they_are() -> None:
    inputs = batch((4, 7))
    assert torch.equal(augment(inputs, EVERYTHING, rng()), inputs)


def test_the_global_generator_is_not_used() -> None:
    before = torch.get_rng_state()
    augment(batch((1, 1, 8, 8)), EVERYTHING, rng())
    assert torch.equal(torch.get_rng_state(), before)


# ------------------------------------------------------------------------------------- border


def test_images_are_cut_from_a_border_of_the_fill_value() -> None:
    images, fill = batch((40, 2, 6, 5)), (7.0, 9.0)
    cut = augment(images, Augmentation(padding=2, flip=True), rng(1), fill)
    level = torch.tensor(fill).view(1, 2, 1, 1)

    def padded(plain: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(plain - level, (2,) * 4) + level

    sources = {False: padded(images), True: padded(images.flip(-1))}
    seen = set()
    for number, image in enumerate(cut):
        matches = [
            (mirrored, top, left)
            for mirrored, source in sources.items()
            for top in range(5)
            for left in range(5)
            if torch.allclose(image, source[number, :, top : top + 6, left : left + 5])
        ]
        assert matches
        seen.add(matches[0])
    assert len({mirrored for mirrored, _, _ in seen}) == 2
    assert len({(top, left) for _, top, left in seen}) > 10


@pytest.mark.parametrize("settings", [EVERYTHING, Augmentation(padding=1, flip=True)])
def test_the_split_into_batches_makes_no_difference(settings: Augmentation) -> None:
    images = batch((10, 1, 8, 8))
    whole, generator = augment(images, settings, rng(2)), rng(2)
    parts = torch.cat([augment(part, settings, generator) for part in torch.split(images, 3)])
    assert torch.allclose(whole, parts)


def test_a_crop_is_what_interpolation_makes_of_it() -> None:
    images = batch((1, 2, 8, 8))
    cropped = augment(images, Augmentation(crop=0.5), rng(3))
    candidates = [
        torch.nn.functional.interpolate(
            images[:, :, top : top + side, left : left + side], size=(8, 8), mode="bilinear"
        )
        for side in range(4, 9)
        for top in range(9 - side)
        for left in range(9 - side)
    ]
    assert any(torch.allclose(cropped, candidate) for candidate in candidates)
