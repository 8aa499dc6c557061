"""Gaussian noise with a given color: the falloff of its spectrum, and the correlation of its channels.

White noise is far from any training data. The power of natural images falls with the square of the frequency, and their
channels are correlated (Field 1987, Relations between the statistics of natural images).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from dfq_plugins.synthesis.loop import make_valid_
from dfq_plugins.types import InputSpec

if TYPE_CHECKING:
    from torch import Tensor

    from dfq_plugins.types import Inputs, Specification


@dataclass(frozen=True)
class Noise:
    """The distribution that inputs are drawn from.

    Args:
        center: mean.
        scale: standard deviation, and the unit of the learning rate.
        exponent: the amplitude falls with the spatial frequency to this power; 0 is white.
        correlation: correlation of any two channels, 0 to 1.
    """

    center: float = 0.0
    scale: float = 1.0
    exponent: float = 0.0
    correlation: float = 0.0


def draw_noise(spec: Specification, count: int, noise: Any, rng: torch.Generator, device: torch.device) -> Inputs:
    """Draw valid inputs `(count, *shape)`, within the range or standardized; images are in channels-last format.

    Args:
        spec: the specification of the inputs.
        count: number of samples.
        noise: their `Noise`; by name if there are several.
        rng: source of the draws.
        device: where to put the inputs.

    >>> from dfq_plugins.types import InputSpec
    >>> drawn = draw_noise(InputSpec((3, 8, 8)), 4, Noise(), torch.Generator().manual_seed(0), torch.device("cpu"))
    >>> drawn.shape
    torch.Size([4, 3, 8, 8])
    """
    return spec.map(lambda one, color: _drawn(one, count, color, rng, device), noise)


def _drawn(spec: InputSpec, count: int, noise: Noise, rng: torch.Generator, device: torch.device) -> Inputs:
    drawn = torch.randn(count, *spec.shape, generator=rng)
    if noise.correlation:
        shared = torch.randn(count, 1, *spec.shape[1:], generator=rng)
        drawn = (1 - noise.correlation) ** 0.5 * drawn + noise.correlation**0.5 * shared
    drawn = colored(drawn, noise.exponent).mul_(noise.scale).add_(noise.center).to(device)
    if drawn.ndim == 4:  # noqa: PLR2004  images
        drawn = drawn.contiguous(memory_format=torch.channels_last)
    return make_valid_(drawn, spec)


def unbounded(spec: Specification) -> Specification:
    """Return the specification without valid ranges."""
    if isinstance(spec, InputSpec):
        return replace(spec, value_range=None)
    return replace(spec, inputs={name: replace(one, value_range=None) for name, one in spec.inputs.items()})


def colored(white: Tensor, exponent: float) -> Tensor:
    """Shape the spectrum of white noise `(batch, channels, *spatial)`; its variance does not change.

    Vectors `(batch, values)` are signals of one channel.

    >>> smooth = colored(torch.randn(8, 1, 64, generator=torch.Generator().manual_seed(0)), 2.0)
    >>> bool(smooth.diff(dim=-1).square().mean() < 0.1 * smooth.square().mean())
    True
    """
    axes = tuple(range(min(2, white.ndim - 1), white.ndim))
    sizes = torch.Size(white.shape[axis] for axis in axes)
    if not exponent or max(sizes) == 1:
        return white
    spectrum = torch.fft.rfftn(white, dim=axes) * _gain(sizes, exponent)
    shaped: Tensor = torch.fft.irfftn(spectrum, s=list(sizes), dim=axes)
    return shaped


def _gain(sizes: torch.Size, exponent: float) -> Tensor:
    """Return the gain at each frequency of `rfftn`, with mean square 1 over all frequencies."""
    grids = torch.meshgrid(*(torch.fft.fftfreq(size) for size in sizes), indexing="ij")
    frequency = torch.stack(grids).square().sum(0).sqrt()
    # The mean of a sample has frequency 0; it gets the gain of the lowest frequency.
    frequency[(0,) * len(sizes)] = frequency[frequency > 0].min()
    gain = frequency.pow(-exponent)
    return (gain / gain.square().mean().sqrt())[..., : sizes[-1] // 2 + 1]
