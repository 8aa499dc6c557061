"""The user's own loss term: a function of the student's outputs and the batch."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from dfq_plugins.errors import DataError, UsageError, first_line
from dfq_plugins.inputs import count
from dfq_plugins.types import InputSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dfq_plugins.types import Inputs, Specification


@dataclass(frozen=True)
class TaskBatch:
    """What a task loss compares the student's outputs with.

    Args:
        inputs: the inputs of the batch, `(batch, *shape)`; by name if the network has several.
        targets: the targets that the data came with; without any, the class labels `(batch,)`; None if there are none.
        outputs: the teacher's outputs for these inputs by name, each `(batch, ...)`.
    """

    inputs: Inputs
    targets: Any
    outputs: Mapping[str, Tensor]


def resolve_task_loss(given: str | Callable[..., Any] | None) -> Callable[[Any, TaskBatch], Tensor] | None:
    """Return the function that a setting names.

    Raises:
        UsageError: the text is not `module:function`, or there is no such function.
    """
    if given is None or callable(given):
        return given
    source, _, name = given.rpartition(":")
    try:
        found = getattr(importlib.import_module(source), name)
    except Exception as error:  # whatever the user's module raises
        raise UsageError(
            f"task_loss must be a function or its module:function, got {given!r} ({first_line(error)}). Name a "
            "function of an importable module, e.g. my_losses:dice."
        ) from error
    if not callable(found):
        raise UsageError(f"task_loss must be a function, but {given} is {type(found).__name__}.")
    return found  # type: ignore[no-any-return]  # whatever the user's module defines


def task_term(function: Callable[[Any, TaskBatch], Tensor], returned: Any, batch: TaskBatch) -> Tensor:
    """Return the value of a task loss, a scalar in float32.

    Args:
        function: the user's function.
        returned: what the student's forward pass returned, in its own structure.
        batch: the inputs, targets and teacher outputs.

    Raises:
        UsageError: it does not return a scalar tensor.
    """
    value = function(returned, batch)
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise UsageError(f"A task loss must return one number as a tensor, got {got}. Reduce it, e.g. with .mean().")
    return value.float().reshape(())


def targets_of(batches: Sequence[Any], spec: Specification) -> Any:
    """Return the targets of batches `(inputs, targets)`, joined along the batch axis; None if there are none.

    Args:
        batches: the user's data; targets may be tensors, or tuples and dictionaries of tensors.
        spec: the inputs, which a batch may also hold one by one in front of its targets.

    Raises:
        DataError: only some batches have targets, or they are not tensors `(batch, ...)` of one structure.
    """
    pairs = [pair for batch in batches if (pair := _with_targets(batch, spec)) is not None]
    found = [targets for inputs, targets in pairs if count(inputs)]
    if not found or all(target is None for target in found):
        return None
    try:
        wrong = [leaf for inputs, one in pairs for leaf in pytree.tree_leaves(one) if len(leaf) != count(inputs)]
        if not wrong and len(pairs) == len(batches):
            return pytree.tree_map(lambda *parts: torch.cat([part.detach().cpu() for part in parts]), *found)
        reason = "a batch has none, or another number of targets than inputs"
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = first_line(error)
    raise DataError(
        "A task loss needs targets with one entry per input in every batch: tensors, or tuples and dictionaries of "
        f"tensors, of the same structure in every batch, but {reason}. Pad what varies in size, such as boxes."
    )


def _with_targets(batch: Any, spec: Specification) -> tuple[Any, Any] | None:
    """Return the inputs of a batch, or the first of them, and its targets; None if it has none."""
    if not isinstance(batch, (tuple, list)) or not batch:
        return None
    place = 1 if isinstance(spec, InputSpec) or isinstance(batch[0], Mapping) else len(spec.order)
    return (batch[0], batch[place]) if len(batch) > place else None
