"""Turns a failed FX trace into an error that names the source line, its module, and the workaround."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.ao.quantization.fx.tracer import QuantizationTracer
from torch.fx import GraphModule

from dfq_plugins.errors import ModelError, first_line
from dfq_plugins.network.trace_errors import failing_line

if TYPE_CHECKING:
    from types import FrameType

_NOT_THE_MODEL = (Path(torch.__file__).parent, Path(__file__).parent)


def trace(model: nn.Module, non_traceable: tuple[str, ...]) -> GraphModule:
    """Return the graph of `model` as torch.ao traces it, with its submodules shared."""
    tracer = QuantizationTracer(list(non_traceable), [])
    return GraphModule(model, tracer.trace(model))


def preparation_error(model: nn.Module, error: Exception) -> ModelError:
    """Return the error to raise when `prepare_fx(model)` failed with `error`."""
    cause = first_line(error)
    place = failing_line(error, _NOT_THE_MODEL)
    if place is None:
        return ModelError(
            f"torch.ao cannot prepare this model: {type(error).__name__}: {cause}. Rewrite the part that causes it, or "
            "exclude the submodule with the option non_traceable."
        )
    return ModelError(
        f"FX graph mode needs a forward pass that does not branch or loop on tensor values, but FX stops at "
        f"{place.text} ({cause}). {_workaround(model, place.frame)}"
    )


def _workaround(model: nn.Module, frame: FrameType) -> str:
    owner = frame.f_locals.get("self")
    name = next((name for name, module in model.named_modules() if module is owner), "")
    if name:
        return (
            f"Keep that submodule whole and in float with the option non_traceable=({name!r},) (in your own code: "
            f"PrepareCustomConfig().set_non_traceable_module_names([{name!r}])), or rewrite the line with tensor "
            "operations."
        )
    return (
        "Move the line into a submodule and name it in the option non_traceable (in your own code: "
        "PrepareCustomConfig().set_non_traceable_module_names([...])), or into a module-level function marked with "
        "torch.fx.wrap, or rewrite it with tensor operations."
    )
