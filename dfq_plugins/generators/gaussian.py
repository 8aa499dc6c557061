"""Gaussian noise: a baseline without cost, and the only scheme that does not use the network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfq_plugins.generators.inversion import even_split
from dfq_plugins.generators.noise import draw_noise, unbounded
from dfq_plugins.generators.start import known_noise
from dfq_plugins.model_state import device_of
from dfq_plugins.types import Batch, DataGenerator, ProgressEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch
    from torch import nn

    from dfq_plugins.generators.options import GaussianOptions
    from dfq_plugins.types import Specification, TimeBudget


class GaussianGenerator(DataGenerator):
    """Draws `x ~ N(mean, std)` of the input normalization, clamped to the valid range.

    Source: Haroush et al. 2020, Gaussian scheme.
    """

    timed = True
    several_inputs = True

    def __init__(self, options: GaussianOptions) -> None:
        self.options = options
        self.keeps_range = options.clamp

    def generate(
        self,
        model: nn.Module,
        spec: Specification,
        *,
        num_samples: int,
        batch_size: int,
        rng: torch.Generator,
        report: Callable[[ProgressEvent], None],
        budget: TimeBudget | None = None,  # noqa: ARG002  noise takes no time
    ) -> Iterator[Batch]:
        """Yield exactly `num_samples` noise inputs."""
        device = device_of(model)
        noise = known_noise(spec)
        bounded = spec if self.options.clamp else unbounded(spec)
        done = 0
        for size in even_split(num_samples, batch_size):
            yield Batch(draw_noise(bounded, size, noise, rng, device))
            done += size
            report(ProgressEvent("synthesize", done, num_samples))
