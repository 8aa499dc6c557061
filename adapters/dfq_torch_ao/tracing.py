"""Turns a failed FX trace into an error that names the source line, the module it stands in, and the way round."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from dfq_plugins.errors import ModelError, first_line
from dfq_plugins.network.trace_errors import failing_line

if TYPE_CHECKING:
    from types import FrameType

_NOT_THE_MODEL = (Path(torch.__file__).parent, Path(__file__).parent)


def preparation_error(model: nn.Module, error: Exception) -> ModelError:
    """Return the error to raise where `prepare_fx(model)` failed with `error`."""
    cause = first_line(error)
    place = failing_line(error, _NOT_THE_MODEL)
    if place is None:
        return ModelError(f"torch.ao cannot prepare this model: {type(error).__name__}: {cause}")
    return ModelError(
        f"FX graph mode needs a forward pass that does not branch or loop on tensor values, and stops at "
        f"{place.text} ({cause}). {_way_round(model, place.frame)}"
    )


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
