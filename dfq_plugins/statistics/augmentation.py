"""Differentiable random augmentation for inputs with any number of spatial axes.

Mirroring, shifting, cropping and resizing are linear maps along one axis each: output position i reads the input at
some position p, interpolated between its neighbors. The augmentation of a batch is therefore one matrix per sample and
axis. Applying it is a matrix product, which compiles into one graph with the network, whatever was drawn.

All draws come from the caller's `torch.Generator` on the CPU, so a run on a GPU gets the same draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from dfq_plugins.types import InputSpec

AxisMaps: TypeAlias = "tuple[Tensor, ...]"
"""A matrix `(batch, size, size)` per spatial axis; empty without augmentation."""

_SPATIAL = 2  # the first spatial axis


@dataclass(frozen=True)
class Augmentation:
    """The augmentation of each input before a forward pass.

    Args:
        jitter: largest shift along each spatial axis, in pixels; pixels wrap around the edges.
        flip: mirror the last axis half of the time.
        crop: smallest side of a random crop, as a fraction of the input, resized back; 1 turns cropping off.
        padding: padding of the random pad-and-crop, in pixels; 0 turns it off. Together with `flip`, this is the usual
            training augmentation for small images (He et al. 2016, section 4.2: 4 pixels at 32).
    """

    jitter: int = 0
    flip: bool = False
    crop: float = 1.0
    padding: int = 0

    @property
    def active(self) -> bool:
        """Whether anything is augmented."""
        return bool(self.jitter or self.flip or self.padding or self.crop < 1)


def augment(
    inputs: Tensor, settings: Augmentation, rng: torch.Generator, fill: tuple[float, ...] | None = None
) -> Tensor:
    """Return the batch `(batch, channels, *spatial)` after one random augmentation per sample.

    Args:
        inputs: the batch.
        settings: the augmentation.
        rng: source of a fixed number of draws per sample, so that the split into batches makes no difference.
        fill: padding value per channel; None for zeros.

    >>> batch = torch.arange(4.0).view(1, 1, 4)
    >>> sorted(augment(batch, Augmentation(jitter=1), torch.Generator().manual_seed(0)).flatten().tolist())
    [0.0, 1.0, 2.0, 3.0]
    """
    maps = draw_maps(settings, tuple(inputs.shape), rng, inputs.device)
    level = inputs.new_tensor(fill or (0.0,) * inputs.shape[1])
    return apply_maps(inputs, maps, level)


def draw_maps(
    settings: Augmentation, shape: tuple[int, ...], rng: torch.Generator, device: torch.device | None = None
) -> AxisMaps:
    """Draw the augmentation of a batch with the shape `(batch, channels, *spatial)`.

    >>> (matrix,) = draw_maps(Augmentation(padding=1), (1, 1, 3), torch.Generator().manual_seed(0))
    >>> matrix[0].tolist()  # shifted by one: the first position holds padding
    [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """
    count, sizes = shape[0], shape[_SPATIAL:]
    if not settings.active or not sizes:
        return ()
    draws = torch.rand(count, 2 + 3 * len(sizes), generator=rng)
    share = settings.crop + (1 - settings.crop) * draws[:, 0:1]
    maps = []
    for axis, size in enumerate(sizes):
        flips = settings.flip and axis == len(sizes) - 1
        mirrored = draws[:, 1:2] < (0.5 if flips else 0.0)
        positions = _source_positions(settings, size, share, mirrored, draws[:, 2 + 3 * axis :][:, :3])
        weights = 1 - (positions[:, :, None] - torch.arange(float(size))).abs()  # linear interpolation
        maps.append(weights.clamp_min(0).to(device))
    return tuple(maps)


def _source_positions(settings: Augmentation, size: int, share: Tensor, mirrored: Tensor, draws: Tensor) -> Tensor:
    """Return the input position that each output position of an axis reads, `(batch, size)`."""
    shift, start, corner = torch.split(draws, 1, dim=1)  # each (batch, 1), uniform in 0..1
    index = torch.arange(float(size)).expand(len(draws), -1)
    index = torch.where(mirrored, size - 1 - index, index)
    index = (index + _uniform_integer(shift, 2 * settings.jitter) - settings.jitter) % size
    window = (size * share).round().clamp_min(1)
    first = _uniform_integer(start, size - window)
    index = ((index + 0.5) * window / size - 0.5).clamp_min(0).minimum(window - 1) + first
    return index + _uniform_integer(corner, 2 * settings.padding) - settings.padding


def _uniform_integer(draw: Tensor, largest: Tensor | int) -> Tensor:
    """Convert a uniform draw in 0..1 to an integer from 0 to `largest`."""
    return (draw * (largest + 1)).floor().minimum(torch.as_tensor(largest, dtype=draw.dtype))


def apply_maps(inputs: Tensor, maps: AxisMaps, fill: Tensor) -> Tensor:
    """Apply the maps to the inputs `(batch, channels, *spatial)`; positions outside read `fill`, `(channels,)`."""
    if not maps:
        return inputs
    level = fill.to(inputs).view(1, -1, *(1 for _ in inputs.shape[_SPATIAL:]))
    mapped = inputs - level
    for axis, matrices in enumerate(maps):
        moved = mapped.movedim(_SPATIAL + axis, -1)
        rows = moved.reshape(len(moved), -1, moved.shape[-1])
        product = torch.bmm(rows, matrices.to(rows).transpose(1, 2))
        mapped = product.reshape(moved.shape).movedim(-1, _SPATIAL + axis)
    return mapped + level


PADDING_SHARE = 8
"""The padding is the image's side divided by this: 4 pixels at 32, as in He et al. 2016, section 4.2."""

PADDED_SIDES = range(16, 65)
"""Sides of images that training usually pads and crops: larger ones are only cropped, tiny ones would lose too much."""


def padding_of(spec: InputSpec) -> int:
    """Return the padding that training usually uses for pad-and-crop of such inputs, in pixels; 0 for none.

    >>> from dfq_plugins.types import InputSpec
    >>> padding_of(InputSpec((3, 32, 32), value_range=(0, 1))), padding_of(InputSpec((3, 224, 224), value_range=(0, 1)))
    (4, 0)
    """
    color_image = len(spec.shape) == 3 and spec.channels == 3 and spec.bounds is not None  # noqa: PLR2004
    if not color_image or any(side not in PADDED_SIDES for side in spec.shape[1:]):
        return 0
    return min(spec.shape[1:]) // PADDING_SHARE
