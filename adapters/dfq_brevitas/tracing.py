"""Turns a failed FX trace into an error that names the source line and the workaround."""

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
    """Return the error to raise when Brevitas could not trace or rewrite `model`."""
    cause = first_line(error)
    place = failing_line(error, _NOT_THE_MODEL)
    if place is None:
        return ModelError(
            f"Brevitas cannot prepare {type(model).__name__}: {type(error).__name__}: {cause}. Rewrite the part that "
            "causes it with plain torch modules, or use the calibrator 'pytorch-quantization', which does not trace."
        )
    return ModelError(
        f"Brevitas's graph mode needs a forward pass that does not branch or loop on tensor values, but it stops at "
        f"{place.text} ({cause}). Rewrite the line with tensor operations or plain torch modules, move it out of the "
        "network, or use the calibrator 'pytorch-quantization', which does not trace; in your own code, "
        "brevitas.graph.quantize.layerwise_quantize does not trace either."
    )
