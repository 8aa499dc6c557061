"""Stores a calibrator's state in the module that `prepare` returned, not in the calibrator.

So every later step also works with another calibrator object, or with a deep copy of the module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from dfq_plugins.errors import UsageError

if TYPE_CHECKING:
    from dfq_plugins.types import Specification

State = TypeVar("State")

_ATTRIBUTE = "_dfq_state"


def attach_state(module: nn.Module, state: object) -> None:
    """Store `state` with `module`, replacing an earlier state of the same class.

    Args:
        module: a prepared or converted module.
        state: a frozen record; deep copies of the module may share it.
    """
    _states(module)[_key(type(state))] = state


def state_of(module: nn.Module, kind: type[State], *, calibrator: str, otherwise: str = "") -> State:
    """Return the state of class `kind` that was attached to `module`, or to the original that it is a deep copy of.

    Args:
        module: the module passed to a step of the calibrator.
        kind: class of the state.
        calibrator: name of the calibrator, for the error.
        otherwise: what to do with a model from elsewhere, for the error: a clause without a period.

    Raises:
        UsageError: no state of that class is attached: the module does not come from this calibrator's `prepare`.
    """
    state = _states(module).get(_key(kind)) if isinstance(module, nn.Module) else None
    if isinstance(state, kind):
        return state
    raise UsageError(
        f"{calibrator} works on models that its own prepare() returned, got {type(module).__name__}. Call prepare() "
        f"first{otherwise and f'; {otherwise}'}."
    )


def require_prepared_shape(given: Specification, prepared: Specification) -> None:
    """Require that a model is exported with the input shape that it was prepared for.

    Raises:
        UsageError: the shapes differ.
    """
    if given.shape != prepared.shape:
        raise UsageError(
            f"Export needs the input shape that the model was prepared with, {prepared.shape}, got {given.shape}. "
            "Give the same specification."
        )


def _key(kind: type) -> str:
    return f"dfq_plugins.state:{kind.__module__}.{kind.__qualname__}"


def _states(module: nn.Module) -> dict[str, Any]:
    """Return the dictionary of a module's states: a deep copy of a graph module keeps only its `meta`."""
    meta = vars(module).get("meta")
    if isinstance(meta, dict):
        return meta
    states: dict[str, Any] = vars(module).setdefault(_ATTRIBUTE, {})
    return states
