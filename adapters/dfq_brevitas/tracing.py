"""Turns a failed FX trace into an error that names the source line, and the way round."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import brevitas
import torch

from dfq_plugins.errors import ModelError, first_line
from dfq_plugins.network.trace_errors import failing_line

if TYPE_CHECKING:
    from torch import nn

_NOT_THE_MODEL = tuple(Path(file).parent for file in (torch.__file__, brevitas.__file__, __file__))


def preparation_error(model: nn.Module, error: Exception) -> ModelError:
    """Return the error to raise where Brevitas could not trace or rewrite `model`."""
    cause = first_line(error)
    place = failing_line(error, _NOT_THE_MODEL)
    if place is None:
        return ModelError(
            f"Brevitas cannot prepare {type(model).__name__}: {type(error).__name__}: {cause}. Rewrite what it names "
            "in plain torch modules, or use the calibrator 'pytorch-quantization', which needs no trace."
        )
    return ModelError(
        f"Brevitas's graph mode needs a forward pass that does not branch or loop on tensor values, and stops at "
        f"{place.text} ({cause}). Rewrite the line in tensor operations or plain torch modules, move it out "
        "of the network, or use the calibrator 'pytorch-quantization', which needs no trace; in a flow of your own, "
        "brevitas.graph.quantize.layerwise_quantize needs none either."
    )
