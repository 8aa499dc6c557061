"""Undoing a view: how a tensor follows from a view of it that was changed in place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dfq_plugins.network.tracing.operation import Reference
from dfq_plugins.network.tracing.replacing import replace_items
from dfq_plugins.network.tracing.spelling import Call

if TYPE_CHECKING:
    from collections.abc import Sequence

_RESHAPING = frozenset({"reshape", "flatten", "unsqueeze", "squeeze", "contiguous", "to", "detach", "unflatten"})
_SPLITTING = frozenset({"chunk", "split"})


def inverse_view(view: Call, reference: Reference, changed: Reference, shape: Sequence[int], parts: Any) -> Call | None:
    """Return the call that computes the original of a view from its changed value, or None if there is none.

    Args:
        view: the call that took the view of the original.
        reference: what the view stood for before the change.
        changed: the changed view.
        shape: the shape of the original.
        parts: the shapes of all results of the call.

    >>> original, view, changed = Reference(0), Reference(1), Reference(2)
    >>> inverse_view(Call("call_function", torch.transpose, (original, 1, 2)), view, changed, (2, 3, 4), None).args
    (Reference(operation=2, item=()), 1, 2)
    """
    if view.name == "getitem":
        return Call("call_function", replace_items, (view.args[0], view.args[1], changed))
    if view.name == "transpose":
        return Call("call_function", torch.transpose, (changed, *view.args[1:]))
    if view.name == "permute":
        axes = [axis % len(shape) for axis in view.args[1]]
        return Call("call_function", torch.permute, (changed, tuple(axes.index(axis) for axis in range(len(axes)))))
    if view.name in _RESHAPING:
        return Call("call_method", "reshape", (changed, tuple(shape)))
    if view.name in _SPLITTING:
        items = [Reference(reference.operation, (index,)) for index in range(len(parts))]
        items[reference.item[0]] = changed
        axis = view.args[2] if len(view.args) > 2 else (view.kwargs or {}).get("dim", 0)  # noqa: PLR2004  (x, n, axis)
        return Call("call_function", torch.cat, (items, axis))
    return None
