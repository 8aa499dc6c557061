"""Turns a failed FX trace into an error that names the source line, and the way round."""

from __future__ import annotations

import linecache
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import brevitas
import torch

from dfq_plugins.errors import ModelError

if TYPE_CHECKING:
    from types import FrameType

    from torch import nn

_NOT_THE_MODEL = tuple(Path(file).parent for file in (torch.__file__, brevitas.__file__, __file__))


def preparation_error(model: nn.Module, error: Exception) -> ModelError:
    """Return the error to raise where Brevitas could not trace or rewrite `model`."""
    cause = str(error).strip().split("\n", maxsplit=1)[0]
    place = _innermost_model_frame(error)
    if place is None:
        return ModelError(
            f"Brevitas cannot prepare {type(model).__name__}: {type(error).__name__}: {cause}. Rewrite what it names "
            "in plain torch modules, or use the calibrator 'pytorch-quantization', which needs no trace."
        )
    frame, line = place
    path = frame.f_code.co_filename
    code = linecache.getline(path, line).strip()
    return ModelError(
        f"Brevitas's graph mode needs a forward pass that does not branch or loop on tensor values, and stops at "
        f"{path}:{line}: `{code}` ({cause}). Rewrite the line in tensor operations or plain torch modules, move it out "
        "of the network, or use the calibrator 'pytorch-quantization', which needs no trace; in a flow of your own, "
        "brevitas.graph.quantize.layerwise_quantize needs none either."
    )


def _innermost_model_frame(error: Exception) -> tuple[FrameType, int] | None:
    """Return the last frame of the traceback that belongs to none of torch, Brevitas and this adapter."""
    found = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        path = Path(frame.f_code.co_filename)
        if path.is_file() and not any(path.is_relative_to(folder) for folder in _NOT_THE_MODEL):
            found = frame, line
    return found
