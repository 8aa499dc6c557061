"""Initial inputs: noise with the known statistics, or fitted to the network if they are unknown."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import torch

from dfq_plugins.generators.noise import Noise, draw_noise
from dfq_plugins.synthesis.loop import drawn_maps
from dfq_plugins.types import InputSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from dfq_plugins.synthesis.objective import InversionObjective
    from dfq_plugins.types import Specification

FIT_SAMPLES = 16
FIT_SEED = 0
CENTERS = (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)  # as fractions of the valid range
SPREADS = tuple(2.0**power for power in range(-6, 0))  # likewise
UNBOUNDED_SPREADS = tuple(2.0**power for power in range(-4, 9))  # if no range is known
EXPONENTS = (0.0, 0.5, 1.0, 1.5, 2.0)
CORRELATIONS = (0.0, 0.5, 0.9)


def known_noise(spec: Specification) -> Any:
    """Return white noise with the mean and standard deviation of the input, as far as the specification defines them.

    For several inputs, return it by name.

    Standardized inputs have 0 and 1; for other inputs with a valid range, its middle and a quarter of it are assumed.

    >>> from dfq_plugins.types import InputSpec
    >>> known_noise(InputSpec((1, 8), value_range=(0.0, 8.0))).scale
    2.0
    """
    return spec.map(_known)


def _known(spec: InputSpec) -> Noise:
    if spec.standardized or spec.input_range is None:
        return Noise()
    low, high = spec.input_range
    return Noise((low + high) / 2, (high - low) / 4)


def fitted_noise(objective: InversionObjective, spec: Specification) -> Any:
    """Return the noise that fits the network's statistics best, from a grid of colors, and of scales if unknown.

    A better start takes fewer iterations: on a MobileNet at 224 pixels, noise with the right color starts at a sixth of
    the divergence of white noise. For inputs with unknown normalization (audio features, raw sensor values), an
    optimization that starts orders of magnitude away from the right scale would not converge at all.

    Several inputs are fitted in turn, each with the noise found so far for the others. One that no BatchNorm layer
    depends on keeps the noise of its specification.
    """
    noise = known_noise(spec)
    if isinstance(spec, InputSpec):
        return _fitted_input(objective, spec, spec, noise, lambda found: found)
    unseen = objective.unseen_inputs()
    for name, one in spec.inputs.items():
        if name not in unseen:
            noise |= {name: _fitted_input(objective, spec, one, noise[name], partial(_placed, noise, name))}
    return noise


def _placed(noise: Mapping[str, Noise], name: str, found: Noise) -> dict[str, Noise]:
    return {**noise, name: found}


def _fitted_input(
    objective: InversionObjective, spec: Specification, one: InputSpec, noise: Noise, placed: Callable[[Noise], Any]
) -> Noise:
    """Return the noise of one input that fits best; `placed` returns the noise of all inputs with it."""
    best = partial(_best_noise, objective, spec, placed)
    scaled = one.standardized or one.standardized_samples
    if not scaled:
        noise = best(scale_candidates(one, noise))
    noise = best(color_candidates(one, noise))
    if not scaled and noise.exponent:
        noise = best(scale_candidates(one, noise))
    return noise


def scale_candidates(spec: InputSpec, noise: Noise) -> list[Noise]:
    """Return candidates with the color of `noise` and different means and standard deviations.

    If zero is a valid input it is also tried as a mean, because features often accumulate there.

    >>> from dfq_plugins.types import InputSpec
    >>> [tried.scale for tried in scale_candidates(InputSpec((1, 8)), Noise())][:2]
    [0.0625, 0.125]
    >>> Noise(0.0, 128.0) in scale_candidates(InputSpec((1, 8), value_range=(-120.0, 136.0)), Noise())
    True
    """
    if spec.input_range is None:
        return [replace(noise, center=0.0, scale=spread) for spread in UNBOUNDED_SPREADS]
    low, high = spec.input_range
    centers = [low + share * (high - low) for share in CENTERS]
    if low <= 0 <= high:
        centers.append(0.0)
    pairs = product(centers, SPREADS)
    return [replace(noise, center=center, scale=spread * (high - low)) for center, spread in pairs]


def color_candidates(spec: InputSpec, noise: Noise) -> list[Noise]:
    """Return candidates with the scale of `noise` and different colors, for spatial axes and several channels.

    The only axis of a vector may be time, as in a frame of audio; if it is not, white noise fits best.

    >>> from dfq_plugins.types import InputSpec
    >>> len(color_candidates(InputSpec((8,)), Noise())), len(color_candidates(InputSpec((3, 8, 8)), Noise()))
    (5, 15)
    """
    exponents = EXPONENTS if math.prod(spec.shape[1:] or spec.shape) > 1 else (0.0,)
    correlations = CORRELATIONS if len(spec.shape) > 1 and spec.channels > 1 else (0.0,)
    pairs = product(exponents, correlations)
    return [replace(noise, exponent=exponent, correlation=correlation) for exponent, correlation in pairs]


@torch.no_grad()
def _best_noise(
    objective: InversionObjective, spec: Specification, placed: Callable[[Noise], Any], candidates: Iterable[Noise]
) -> Noise:
    labels = torch.zeros(FIT_SAMPLES, dtype=torch.long, device=objective.device)

    def misfit(noise: Noise) -> float:
        # Every candidate gets the same draw, which depends only on this module.
        rng = torch.Generator().manual_seed(FIT_SEED)
        drawn = draw_noise(spec, FIT_SAMPLES, placed(noise), rng, objective.device)
        maps = drawn_maps(objective.options, spec, drawn, rng)  # as during the optimization
        loss = float(objective.evaluate_once(drawn, labels, maps))
        return loss if math.isfinite(loss) else math.inf

    return min(candidates, key=misfit)
