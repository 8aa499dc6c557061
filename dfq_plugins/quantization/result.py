"""The record of a quantized model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from dfq_plugins.network.agreement import OutputAgreement
    from dfq_plugins.reconstruction.run import ReconstructedBlock
    from dfq_plugins.types import Artifact, Coverage, Recipe, RejectedArtifact


@dataclass(frozen=True)
class QuantizationRun:
    """A quantized model with its coverage, artifacts and agreement.

    Args:
        model: the framework's native model.
        calibrator: name of the calibrator.
        recipe: bit widths.
        coverage: which layers are quantized and how, and what stays in float.
        artifacts: exported files, each checked.
        rejected: exports that failed, and the files that failed their check, each with the reason.
        agreement: share of the calibration inputs on which the float and the quantized model predict the same class, or
            of the positions of a class map; NaN if the network is not known to be a classifier.
        output_agreement: how closely each output agrees with the float model's.
        reconstruction: the blocks that were reconstructed, in order.
    """

    model: nn.Module
    calibrator: str
    recipe: Recipe
    coverage: Coverage
    artifacts: tuple[Artifact, ...]
    agreement: float
    rejected: tuple[RejectedArtifact, ...] = field(default=(), kw_only=True)
    output_agreement: tuple[OutputAgreement, ...] = field(default=(), kw_only=True)
    reconstruction: tuple[ReconstructedBlock, ...] = field(default=(), kw_only=True)
