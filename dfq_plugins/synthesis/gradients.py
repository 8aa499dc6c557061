"""Whether gradients flow from a network's outputs and BatchNorm layers to its inputs, or the line where they end."""

from __future__ import annotations

import linecache
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from dfq_plugins.errors import ModelError, first_line
from dfq_plugins.inputs import cloned, leaves
from dfq_plugins.model_state import device_of
from dfq_plugins.network.outputs import named_outputs
from dfq_plugins.network.trace_errors import failing_line
from dfq_plugins.statistics.batch_norm import StatisticsHooks, require_reached_layers
from dfq_plugins.statistics.requirements import INSTEAD

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dfq_plugins.types import Specification

logger = logging.getLogger(__name__)

_SHOWN = 5
_SAMPLES = 2
_STEPS = {"round", "floor", "ceil", "trunc", "sign", "heaviside", "round_", "floor_", "ceil_", "trunc_", "sign_"}
"""Functions whose gradient is zero everywhere."""

_FOLDERS = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))


class _GradientEnds(TorchFunctionMode):
    """Notes the lines at which a value that depends on the inputs loses its gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.steps: list[str] = []

    def __torch_function__(
        self, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(value.requires_grad for value in _tensors((args, kwargs))):
            name = str(getattr(func, "__name__", func))
            made = _tensors(result)
            is_mask = all(value.dtype == torch.bool for value in made)
            if made and not is_mask and not any(value.requires_grad for value in made) and not _only_shape(name):
                self.lines.append(_line_of_the_network())
            elif name in _STEPS:
                self.steps.append(_line_of_the_network())
        return result


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in pytree.tree_leaves(values) if isinstance(value, Tensor)]


def _only_shape(name: str) -> bool:
    """Return whether a function uses only the shape of its argument, such as `zeros_like` and `new_empty`."""
    return name.endswith("_like") or name.startswith("new_")


def _line_of_the_network() -> str:
    """Return the line of the user's code that is running, `path:number: `code``; empty if it is not the user's."""
    frame = sys._getframe(2)  # noqa: SLF001  the stack of a running function, not of an error
    while frame is not None and (
        frame.f_code.co_filename.startswith(_FOLDERS[0]) or frame.f_code.co_name == "__torch_function__"
    ):
        frame = frame.f_back  # type: ignore[assignment]
    if frame is None or frame.f_code.co_filename.startswith(_FOLDERS[1]):
        return ""
    path, number = frame.f_code.co_filename, frame.f_lineno
    return f"{path}:{number}: `{linecache.getline(path, number).strip()}`"


def require_gradients(model: nn.Module, spec: Specification, *, statistics: bool) -> None:
    """Check that gradients reach the inputs, from the BatchNorm layers or from the outputs; warn if some have none.

    Args:
        model: a network in eval mode.
        spec: the input specification.
        statistics: whether BatchNorm statistics are matched; otherwise only the outputs count.

    Raises:
        ModelError: no gradient reaches the inputs, or the network fails with gradients; the message names the line.
    """
    names = require_reached_layers(model, spec) if statistics else ()
    rng, device = torch.Generator().manual_seed(0), device_of(model)
    inputs = spec.map(lambda one: torch.rand(_SAMPLES, *one.shape, generator=rng).to(device).requires_grad_())
    variables, ends, kind = leaves(inputs), _GradientEnds(), type(model).__name__
    try:
        with StatisticsHooks(model, names=names) as hooks:  # also in the backward pass, for networks that recompute
            with ends:
                outputs = spec.run(model, cloned(inputs))
            values = _observed(hooks) or {
                "outputs": [part for part in named_outputs(outputs).values() if part.is_floating_point()]
            }
            total = [part.float().sum() for parts in values.values() for part in parts if part.requires_grad]
            found = torch.autograd.grad(torch.stack(total).sum(), variables, allow_unused=True) if total else ()
    except RuntimeError as error:
        line = failing_line(error, tuple(map(Path, _FOLDERS)))
        raise ModelError(
            f"Inputs are optimized by their gradient, but {kind} does not run with gradients: {first_line(error)}"
            f"{'' if line is None else f' at {line.text}'}. Change that line, or use what needs none. {INSTEAD}"
        ) from error
    lost = [name for name, parts in values.items() if not any(part.requires_grad for part in parts)]
    gradients = [gradient for gradient in found if gradient is not None]
    if not gradients:
        raise ModelError(_message(kind, ends.lines, "ends"))
    if ends.steps and not any(bool(gradient.any()) for gradient in gradients):
        raise ModelError(_message(kind, ends.steps, "is zero behind"))
    if lost:
        more = f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
        place = _place(ends.lines, "ends")
        logger.warning(
            "The statistics of %s%s cannot be matched: the gradient %s.", ", ".join(lost[:_SHOWN]), more, place
        )


def _observed(hooks: StatisticsHooks) -> dict[str, list[Tensor]]:
    calls = zip(hooks.layers, hooks.collect_calls(), strict=True)
    return {name: [value for call in moments for value in (call.mean, call.var)] for name, moments in calls}


def _place(lines: Sequence[str], verb: str) -> str:
    line = next((line for line in lines if line), "")
    return f"{verb} {'' if verb != 'ends' else 'at '}{line}" if line else f"{verb} inside the network"


def _message(name: str, lines: Sequence[str], verb: str) -> str:
    return (
        f"Inputs are optimized by their gradient, but in {name} the gradient {_place(lines, verb)}. Gradients do not "
        "pass through no_grad, inference_mode, detach, rounding or integers: remove that from the forward pass, or "
        f"pass the part of the network after it. {INSTEAD}"
    )
