"""Where inputs start: noise with the statistics that are known, or fitted to the network where none are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from dfq_plugins.optimization import clamp_

if TYPE_CHECKING:
    from torch import Tensor

    from dfq_plugins.inversion import InversionObjective
    from dfq_plugins.types import InputSpec

FIT_SAMPLES = 32
CENTRES = tuple((2 * step + 1) / 20 for step in range(10))  # 0.05, 0.15 ... 0.95, as shares of the valid range
SPREADS = tuple(2.0**power for power in range(-6, 0))  # likewise
UNBOUNDED_SPREADS = tuple(2.0**power for power in range(-4, 9))  # where no range is known


def input_moments(spec: InputSpec) -> tuple[float, float]:
    """Return mean and standard deviation of the network's input, as far as the specification tells.

    Standardized inputs have 0 and 1; of others with a valid range the middle and a quarter of it are assumed.

    >>> from dfq_plugins.types import InputSpec
    >>> input_moments(InputSpec((1, 8), value_range=(0.0, 8.0)))
    (4.0, 2.0)
    """
    if spec.standardized or spec.extremes is None:
        return 0.0, 1.0
    low, high = spec.extremes
    return (low + high) / 2, (high - low) / 4


def noise(
    spec: InputSpec, count: int, centre: float, scale: float, rng: torch.Generator, device: torch.device
) -> Tensor:
    """Draw Gaussian inputs `(count, *shape)`, clamped to the valid range; images come in channels-last."""
    drawn = torch.randn(count, *spec.shape, generator=rng).mul_(scale).add_(centre).to(device)
    if drawn.ndim == 4:  # noqa: PLR2004  images
        drawn = drawn.contiguous(memory_format=torch.channels_last)
    return clamp_(drawn, spec)


@torch.no_grad()
def fitted_moments(objective: InversionObjective, spec: InputSpec, rng: torch.Generator) -> tuple[float, float]:
    """Return the mean and standard deviation of noise that best fits the network's statistics, from a grid.

    For inputs of unknown normalisation (audio features, raw sensor values): a search that starts orders of magnitude
    away from the right scale would not arrive.
    """
    drawn = torch.randn(FIT_SAMPLES, *spec.shape, generator=rng).to(objective.device)
    labels = torch.zeros(FIT_SAMPLES, dtype=torch.long, device=objective.device)

    def misfit(moments: tuple[float, float]) -> float:
        centre, scale = moments
        loss = float(objective.evaluate_once(clamp_(drawn * scale + centre, spec), labels))
        return loss if math.isfinite(loss) else math.inf

    return min(candidate_moments(spec), key=misfit)


def candidate_moments(spec: InputSpec) -> list[tuple[float, float]]:
    """Return the pairs of mean and standard deviation that are tried.

    Zero is a candidate of its own wherever it is a valid input: features often pile up there.

    >>> from dfq_plugins.types import InputSpec
    >>> candidate_moments(InputSpec((1, 8)))[:2]
    [(0.0, 0.0625), (0.0, 0.125)]
    >>> (0.0, 128.0) in candidate_moments(InputSpec((1, 8), value_range=(-120.0, 136.0)))
    True
    """
    if spec.extremes is None:
        return [(0.0, spread) for spread in UNBOUNDED_SPREADS]
    low, high = spec.extremes
    centres = [low + share * (high - low) for share in CENTRES]
    if low <= 0 <= high:
        centres.append(0.0)
    return [(centre, spread * (high - low)) for centre in centres for spread in SPREADS]
