"""Random augmentation inside the optimisation, differentiable, for inputs with any number of spatial axes.

Every draw comes from the caller's `torch.Generator`, on the processor, so a run on a GPU sees the same draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812  the name that every torch user reads

if TYPE_CHECKING:
    from torch import Tensor

BORDER_GROUPS = 16
"""So many different shifts within a batch: the statistics of the mixture count, one shift alone would mislead."""


@dataclass(frozen=True)
class Augmentation:
    """What happens to a batch before each forward pass.

    Args:
        jitter: largest shift along each spatial axis, in pixels, rolled round the edges.
        flip: mirror the last axis of the whole batch half of the time.
        crop: smallest side of a random crop, as a share of the input, resized back; 1 turns it off.
        border: width of the border that images are shifted over, in pixels; 0 turns it off.
        fill: what the border holds, one value a channel.
    """

    jitter: int = 0
    flip: bool = False
    crop: float = 1.0
    border: int = 0
    fill: tuple[float, ...] = ()


def augment(inputs: Tensor, settings: Augmentation, rng: torch.Generator) -> Tensor:
    """Return the batch `(batch, channels, *spatial)` after one random draw of the augmentation.

    >>> batch = torch.arange(4.0).view(1, 1, 4)
    >>> sorted(augment(batch, Augmentation(jitter=1), torch.Generator().manual_seed(0)).flatten().tolist())
    [0.0, 1.0, 2.0, 3.0]
    """
    if settings.border and inputs.ndim == 4:  # noqa: PLR2004  (batch, channels, height, width)
        fill = inputs.new_tensor(settings.fill or (0.0,) * inputs.shape[1])
        inputs = pad_and_crop(inputs, settings.border, fill, rng, group=max(1, len(inputs) // BORDER_GROUPS))
    if settings.crop < 1:
        inputs = _random_resized_crop(inputs, settings.crop, rng)
    if settings.jitter:
        inputs = _jitter(inputs, settings.jitter, rng)
    if settings.flip and inputs.ndim > 2 and _draw(0, 2, rng):  # noqa: PLR2004  needs a spatial axis
        inputs = inputs.flip(-1)
    return inputs


def _draw(low: int, high: int, rng: torch.Generator) -> int:
    return int(torch.randint(low, high, (), generator=rng))


def _jitter(inputs: Tensor, reach: int, rng: torch.Generator) -> Tensor:
    axes = range(2, inputs.ndim)
    shifts = [_draw(-reach, reach + 1, rng) for _ in axes]
    return torch.roll(inputs, shifts, list(axes)) if shifts else inputs


def _random_resized_crop(inputs: Tensor, smallest: float, rng: torch.Generator) -> Tensor:
    share = smallest + (1 - smallest) * float(torch.rand((), generator=rng))
    cropped = inputs
    for axis in range(2, inputs.ndim):
        full = inputs.shape[axis]
        size = max(1, round(full * share))
        cropped = cropped.narrow(axis, _draw(0, full - size + 1, rng), size)
    modes = {3: "linear", 4: "bilinear", 5: "trilinear"}
    if inputs.ndim not in modes:
        return inputs
    return F.interpolate(cropped, size=inputs.shape[2:], mode=modes[inputs.ndim], align_corners=False)


def pad_and_crop(inputs: Tensor, border: int, fill: Tensor, rng: torch.Generator, *, group: int = 1) -> Tensor:
    """Mirror half of the images, put a border round each, and cut each back to its size at a random place.

    The usual augmentation of training on small images (He et al. 2016, section 4.2, with a border of 4 at 32 pixels).

    Args:
        inputs: `(batch, channels, height, width)`.
        border: width of the border, in pixels.
        fill: what the border holds, `(channels,)`.
        rng: three draws a group, in the order of the groups.
        group: so many neighbours share a draw, which makes fewer and larger operations.

    >>> image = torch.ones(1, 1, 4, 4)
    >>> pad_and_crop(image, 0, torch.zeros(1), torch.Generator().manual_seed(0)).equal(image)
    True
    """
    height, width = inputs.shape[2:]
    level = fill.to(inputs).view(1, -1, 1, 1)
    padded = F.pad(inputs - level, (border,) * 4) + level
    parts = torch.split(padded, group)
    draws = torch.rand(len(parts), 3, generator=rng)
    corners = (draws[:, 1:] * (2 * border + 1)).long().tolist()
    cut = []
    for part, mirrored, (top, left) in zip(parts, (draws[:, 0] < 0.5).tolist(), corners, strict=True):  # noqa: PLR2004
        window = part[:, :, top : top + height, left : left + width]
        cut.append(window.flip(-1) if mirrored else window)
    return torch.cat(cut) if cut else inputs
