"""Turns whatever a framework raises into one error: the step, the submodule and its line, the cause, the way round."""

from __future__ import annotations

import traceback
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import fx, nn

from dfq_plugins.errors import DfqError, ModelError, first_line
from dfq_plugins.network.tracing.operation import PLACES
from dfq_plugins.quantization.batches import raised_by_batches
from dfq_plugins.quantization.environment import environment_fault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dfq_plugins.network.tracing.operation import Place


@contextmanager
def step_errors(framework: str, step: str, model: nn.Module, way_round: Callable[[str], str]) -> Iterator[None]:
    """Within the block, turn the framework's errors into errors that users can act on.

    Args:
        framework: its name in messages: "torch.ao".
        step: what it does within the block: "prepare", "calibrate", "convert" or "export".
        model: the network that it works on; a traced one knows the lines of its operations.
        way_round: returns what to do, given the name of the submodule at fault, which may be empty.

    Raises:
        ModelError: the framework failed on the network, or the machine ran short of something. An error of the caller's
            calibration batches stays as it is.
    """
    try:
        yield
    except DfqError:
        raise
    except Exception as error:
        if raised_by_batches(error):
            raise
        fault = environment_fault(error)
        if fault is not None:
            raise ModelError(f"{framework} could not {step} the network because of this machine: {fault}") from error
        name = failing_submodule(error, model)
        cause = f"{type(error).__name__}: {first_line(error)}".rstrip(".")
        raise ModelError(
            f"{framework} cannot {step} this network{_where(model, name)} ({cause}). {way_round(name)}"
        ) from error


def failing_submodule(error: BaseException, model: nn.Module) -> str:
    """Return the name of the innermost submodule in the traceback of an error, or an empty string.

    Frameworks work on modules or on nodes of a graph; either is found among the variables of a frame.
    """
    names = {id(module): name for name, module in model.named_modules() if name}
    targets = {node.name: node for node in model.graph.nodes} if isinstance(model, fx.GraphModule) else {}
    found = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for value in list(frame.f_locals.values()):
            if isinstance(value, nn.Module) and id(value) in names:
                found = names[id(value)]
            elif isinstance(value, fx.Node):
                node = targets.get(value.name, value)
                found = str(node.target) if node.op == "call_module" else node.name
    return found


def _where(model: nn.Module, name: str) -> str:
    if not name:
        return ""
    places: dict[str, Place] = getattr(model, "meta", {}).get(PLACES, {})
    place = places.get(name) or next((place for place in places.values() if place.module == name), None)
    line = "" if place is None or not place.line else f", {place.line}"
    try:
        kind = f", a {type(model.get_submodule(name)).__name__}"
    except AttributeError:
        kind = ""
    return f" at {name!r}{kind}{line}"
