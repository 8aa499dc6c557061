"""The record of a quantized model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from dfq_plugins.types import Artifact, Coverage, Recipe, RejectedArtifact


@dataclass(frozen=True)
class QuantizationRun:
    """A quantized model with everything that is known about it.

    Args:
        model: the framework's native object.
        calibrator: name of the calibrator.
        recipe: bit widths.
        coverage: which layers are quantized and how, and what stays in float.
        artifacts: exported files, each checked.
        rejected: exports that failed, and the files that failed their check, each with the reason.
        agreement: share of the calibration inputs on which float and quantized model name the same class; NaN where
            the network is no classifier.
    """

    model: nn.Module
    calibrator: str
    recipe: Recipe
    coverage: Coverage
    artifacts: tuple[Artifact, ...]
    agreement: float
    rejected: tuple[RejectedArtifact, ...] = field(default=(), kw_only=True)
