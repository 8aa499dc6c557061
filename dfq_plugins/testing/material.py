"""Test material of the calibrator's contract: a task, inputs for it, and a finished run."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dfq_plugins.generators.noise import Noise, draw_noise

if TYPE_CHECKING:
    from torch import nn

    from dfq_plugins.types import Calibrator, InputSpec, Recipe

SAMPLES = 64
COLOR = 1.5
"""Exponent with which the amplitude of the test inputs falls with frequency, similar to natural images."""


@functools.lru_cache(maxsize=4)
def smooth_noise(spec: InputSpec) -> torch.Tensor:
    """Return inputs `(64, *shape)` that vaguely resemble images, mostly inside their range."""
    low, high = spec.input_range or (-2.0, 2.0)
    noise = Noise((low + high) / 2, (high - low) / 3, COLOR)
    drawn: torch.Tensor = draw_noise(spec, SAMPLES, noise, torch.Generator().manual_seed(0), torch.device("cpu"))
    return drawn


@dataclass(frozen=True)
class Task:
    """A task: a float model in eval mode, its input specification, bit widths, and samples `(samples, *shape)`."""

    model: nn.Module
    spec: InputSpec
    recipe: Recipe
    samples: torch.Tensor


@dataclass(frozen=True)
class QuantizedRun:
    """A calibrator with the model that it quantized."""

    calibrator: Calibrator
    converted: nn.Module
