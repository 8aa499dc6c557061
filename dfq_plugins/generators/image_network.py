"""A network that generates images of any size and number of channels from random numbers."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812  the usual name in torch code
from torch import Tensor, nn

from dfq_plugins.errors import UsageError

if TYPE_CHECKING:
    from dfq_plugins.types import InputSpec

FIRST_SIDE = 8
"""Approximate side of the first feature map, as in the paper for 32 pixels."""

FEWEST_STAGES = 2
_IMAGE_AXES = 3
_SLOPE = 0.2


class ImageNetwork(nn.Module):
    """A few stages of upsampling and convolution from a vector to an image.

    `Linear(latent -> width x h x w), BatchNorm, then in each stage: upsample to twice the side, convolve, BatchNorm,
    LeakyReLU 0.2; last convolve to the image's channels, BatchNorm`. At 32 pixels this is the generator of Zhu et al.
    2020 (arXiv 2010.07334): two stages of 128 and 64 channels, starting at 8 pixels. Larger images need more stages.

    To generate images of given classes, the random numbers are multiplied by a learned vector per class (Xu et al.
    2020, GDFQ).

    Args:
        spec: the specification of the images.
        latent: size of the latent vector.
        width: channels of all stages but the last, which has half as many.
        bounded: squash the output of the last BatchNorm into the valid range of each channel, if it is known.
        num_classes: number of classes to generate images for; None generates images without a class.
    """

    def __init__(
        self, spec: InputSpec, latent: int, width: int, *, bounded: bool = True, num_classes: int | None = None
    ) -> None:
        super().__init__()
        require_images(spec)
        channels, *sides = spec.shape
        self.sizes = stage_sizes(sides[0], sides[1])
        self.width = width
        self.classes = None if num_classes is None else nn.Embedding(num_classes, latent)
        self.start = nn.Linear(latent, width * math.prod(self.sizes[0]))
        self.start_norm = nn.BatchNorm2d(width)
        widths = [width] * (len(self.sizes) - 1) + [width // 2]
        self.convolutions = nn.ModuleList(nn.Conv2d(*pair, 3, padding=1) for pair in pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(count) for count in widths[1:])
        self.last = nn.Conv2d(widths[-1], channels, 3, padding=1)
        self.last_norm = nn.BatchNorm2d(channels)
        self.bounded = bounded and spec.bounds is not None
        for name, edge in zip(("low", "high"), spec.bounds or (), strict=False):  # no bounds: no buffers
            self.register_buffer(name, torch.tensor(edge).view(-1, 1, 1), persistent=False)

    def forward(self, latent: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return images `(batch, channels, height, width)`.

        Args:
            latent: `(batch, latent)`, drawn from a standard normal distribution.
            labels: classes `(batch,)`, if the network was built with classes.
        """
        if self.classes is not None:
            latent = latent * self.classes(labels)
        hidden = self.start_norm(self.start(latent).view(-1, self.width, *self.sizes[0]))
        for size, convolution, norm in zip(self.sizes[1:], self.convolutions, self.norms, strict=True):
            hidden = F.leaky_relu(norm(convolution(F.interpolate(hidden, size=size))), _SLOPE)
        images: Tensor = self.last_norm(self.last(hidden)).float()
        if not self.bounded:
            return images
        low, high = self.get_buffer("low"), self.get_buffer("high")
        return low + (high - low) * images.sigmoid()


def require_images(spec: InputSpec) -> None:
    """Reject inputs that are not images.

    Raises:
        UsageError: the inputs are not images; the message names the shape and an alternative.
    """
    if len(spec.shape) != _IMAGE_AXES:
        raise UsageError(
            f"A generator network makes images (channels, height, width), got the input shape {spec.shape}. Use a "
            "generator that supports any shape, such as 'bns', and train on its data set."
        )


def stage_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Return the sizes from the first feature map to the image, each about twice the previous one.

    >>> stage_sizes(32, 32)
    [(8, 8), (16, 16), (32, 32)]
    >>> stage_sizes(49, 10)
    [(13, 3), (25, 5), (49, 10)]
    >>> stage_sizes(224, 224)[0]
    (14, 14)
    """
    stages = max(FEWEST_STAGES, int(math.log2(max(1, min(height, width) / FIRST_SIDE))))
    return [(math.ceil(height / 2**left), math.ceil(width / 2**left)) for left in range(stages, -1, -1)]
