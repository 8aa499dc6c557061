"""Turns a failed FX trace into an error that names the source line, the module it stands in, and the way round."""

from __future__ import annotations

import linecache
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from dfq_plugins.errors import ModelError

if TYPE_CHECKING:
    from types import FrameType

_NOT_THE_MODEL = (Path(torch.__file__).parent, Path(__file__).parent)


def preparation_error(model: nn.Module, error: Exception) -> ModelError:
    """Return the error to raise where `prepare_fx(model)` failed with `error`."""
    cause = str(error).strip().split("\n", maxsplit=1)[0]
    place = _innermost_model_frame(error)
    if place is None:
        return ModelError(f"torch.ao cannot prepare this model: {type(error).__name__}: {cause}")
    frame, line = place
    path = frame.f_code.co_filename
    code = linecache.getline(path, line).strip()
    return ModelError(
        f"FX graph mode needs a forward pass that does not branch or loop on tensor values, and stops at "
        f"{path}:{line}: `{code}` ({cause}). {_way_round(model, frame)}"
    )


def _innermost_model_frame(error: Exception) -> tuple[FrameType, int] | None:
    """Return the last frame of the traceback that belongs neither to torch nor to this adapter."""
    found = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        path = Path(frame.f_code.co_filename)
        if path.is_file() and not any(path.is_relative_to(folder) for folder in _NOT_THE_MODEL):
            found = frame, line
    return found


def _way_round(model: nn.Module, frame: FrameType) -> str:
    owner = frame.f_locals.get("self")
    name = next((name for name, module in model.named_modules() if module is owner), "")
    if name:
        return (
            f"Keep that submodule whole and in float with the option non_traceable=({name!r},) (in a flow of your own: "
            f"PrepareCustomConfig().set_non_traceable_module_names([{name!r}])), or rewrite the line in tensor "
            "operations."
        )
    return (
        "Move the line into a submodule and name it in the option non_traceable (in a flow of your own: "
        "PrepareCustomConfig().set_non_traceable_module_names([...])), or into a module-level function marked with "
        "torch.fx.wrap, or rewrite it in tensor operations."
    )
