"""The records of a traced forward pass: operations, the values that they pass on, and where they were asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from dfq_plugins.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from dfq_plugins.network.tracing.spelling import Call

PLACES = "dfq_places"
"""Key in a traced module's `meta`: the place of each node, by the node's name."""
SHAPE = "dfq_shape"
"""Key in the `meta` of a traced node: the shape of its result for two samples; None if it is not one tensor."""


class UntraceableError(ModelError):
    """The forward pass cannot be written as a graph.

    Args:
        message: what is in the way, and where.
        module: name of the submodule whose forward it is; empty for the network's own.
    """

    def __init__(self, message: str, *, module: str = "") -> None:
        super().__init__(message)
        self.module = module


class Place(NamedTuple):
    """Where an operation was asked for: the submodule whose forward is running, and the line of its code."""

    module: str
    line: str

    def __str__(self) -> str:
        owner = f"in {self.module!r}" if self.module else "in the network's own forward"
        return f"{owner} at {self.line}" if self.line else owner


@dataclass(frozen=True)
class Reference:
    """The tensor that an operation returned: its index in the recording, and the item in a tuple of results."""

    operation: int
    item: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Attribute:
    """A parameter or buffer of the network, by its dotted name."""

    name: str


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor that the forward pass created outside torch's functions, for example from NumPy."""

    value: Tensor


@dataclass(eq=False)
class Operation:
    """One call of the forward pass: an input of the network, a submodule, or a function of torch.

    Attributes:
        call: what is called, with tensors replaced by references.
        place: where it was asked for.
        from_input: whether the result depends on the network's input.
        random: whether it draws random numbers.
        result: what it returned, kept only where it does not depend on the input.
    """

    call: Call
    place: Place
    from_input: bool
    random: bool = False
    result: Any = None


@dataclass(eq=False)
class Recording:
    """All operations of one forward pass in order, with its inputs and its outputs.

    Attributes:
        batch: number of samples of the inputs.
        operations: the calls; the first ones are the inputs.
        shapes: the shape that each operation returned; nested where it returned several tensors.
        output: what the network returned, with tensors replaced by references.
        values: the same with the tensors themselves.
    """

    batch: int
    operations: list[Operation] = field(default_factory=list)
    shapes: list[Any] = field(default_factory=list)
    output: Any = None
    values: Any = None


def map_values(function: Callable[[Any], Any], value: Any) -> Any:
    """Apply `function` to everything in nested tuples, lists, dictionaries and slices that is none of them.

    >>> map_values(lambda value: value + 1, (1, [2, {"a": 3}], slice(0, 4, 1)))
    (2, [3, {'a': 4}], slice(1, 5, 2))
    """
    if isinstance(value, tuple):
        items = [map_values(function, item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, list):
        return [map_values(function, item) for item in value]
    if isinstance(value, dict):
        return {key: map_values(function, item) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(*(map_values(function, edge) for edge in (value.start, value.stop, value.step)))
    return function(value)


def leaves(value: Any) -> list[Any]:
    """Return everything in nested tuples, lists, dictionaries and slices that is none of them, in order.

    >>> leaves((1, [2, {"a": 3}]))
    [1, 2, 3]
    """
    found: list[Any] = []
    map_values(found.append, value)
    return found
