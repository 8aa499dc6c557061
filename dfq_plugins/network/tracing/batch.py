"""Tells sizes that follow the batch from those that do not, by comparing two recordings of different batch sizes."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dfq_plugins.network.tracing.operation import Constant, Operation, Recording, UntraceableError, leaves

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class BatchSize:
    """A number that follows the batch: `factor * samples + offset`.

    >>> BatchSize.through(2, 14, 3, 21)
    BatchSize(factor=7, offset=0)
    """

    factor: float
    offset: float

    @classmethod
    def through(cls, first_batch: int, first: float, second_batch: int, second: float) -> BatchSize:
        """Return the line through a number seen at two batch sizes."""
        slope = (second - first) / (second_batch - first_batch)
        factor = int(slope) if slope == int(slope) else slope
        offset = first - factor * first_batch
        return cls(factor, int(offset) if offset == int(offset) else offset)


def unify(first: Recording, second: Recording) -> list[Operation]:
    """Return the operations of a network for any batch size.

    Numbers that differ between the recordings become `BatchSize`; constant results that differ lose their `result`.

    Raises:
        UntraceableError: the forward pass does other things for another number of samples.
    """
    unified: list[Operation] = []
    pair = (first, second)
    for one, other in zip(first.operations, second.operations, strict=False):
        if (one.call.kind, one.call.name) != (other.call.kind, other.call.name):
            raise _depends_on_batch(one, f"{one.call.name} for {first.batch}, {other.call.name} for {second.batch}")
        args = _unified(one.call.args, other.call.args, pair, one)
        kwargs = _unified(dict(one.call.kwargs or {}), dict(other.call.kwargs or {}), pair, one)
        result = one.result if same_values(one.result, other.result) else None
        from_input = one.from_input or other.from_input
        call = replace(one.call, args=args, kwargs=kwargs or None)
        unified.append(replace(one, call=call, from_input=from_input, result=result))
    if len(first.operations) != len(second.operations):
        last = unified[-1]
        counts = f"{len(first.operations)} operations for {first.batch}, {len(second.operations)} for {second.batch}"
        raise _depends_on_batch(last, counts)
    return unified


def _unified(one: Any, other: Any, pair: tuple[Recording, Recording], operation: Operation) -> Any:
    if isinstance(one, (tuple, list)) and type(one) is type(other) and len(one) == len(other):
        items = [_unified(a, b, pair, operation) for a, b in zip(one, other, strict=True)]
        return (
            type(one)(*items)
            if hasattr(one, "_fields")
            else type(one)(items)
            if isinstance(one, list)
            else tuple(items)
        )
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return {key: _unified(one[key], other[key], pair, operation) for key in one}
    if isinstance(one, slice) and isinstance(other, slice):
        edges = ("start", "stop", "step")
        return slice(*(_unified(getattr(one, edge), getattr(other, edge), pair, operation) for edge in edges))
    if isinstance(one, Constant) and isinstance(other, Constant):
        if same_values(one.value, other.value):
            return one
        raise UntraceableError(
            f"A traced forward pass must compute with torch's functions, but {operation.call.name}() {operation.place} "
            "reads a tensor that was made another way from the input (a scripted function, NumPy, a custom operator).",
            module=operation.place.module,
        )
    if one is other or one == other:
        return one
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return BatchSize.through(pair[0].batch, one, pair[1].batch, other)
    raise _depends_on_batch(operation, f"{one!r} for {pair[0].batch}, {other!r} for {pair[1].batch}")


def same_values(one: Any, other: Any) -> bool:
    """Return whether two constant results are equal in structure, shape, type and value."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        alike = one.shape == other.shape and one.dtype == other.dtype and one.device == other.device
        return alike and bool(torch.equal(one, other))
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(one) == len(other) and all(map(same_values, one, other))
    if is_dataclass(one) and type(one) is type(other):
        return all(same_values(getattr(one, item.name), getattr(other, item.name)) for item in fields(one))
    return bool(one == other)


def is_batch_dependent(values: Sequence[Any]) -> bool:
    """Return whether a number among nested arguments follows the batch."""
    return any(isinstance(value, BatchSize) for value in leaves(values))


def _depends_on_batch(operation: Operation, difference: str) -> UntraceableError:
    return UntraceableError(
        "A traced forward pass must do the same for any number of samples, but a loop or branch over the batch "
        f"makes it differ {operation.place} ({difference} samples).",
        module=operation.place.module,
    )
