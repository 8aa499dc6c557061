"""The outputs of a network by name: of one tensor, or of any nesting of tuples, dictionaries and records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree  # torch.utils.pytree is not public yet

from dfq_plugins.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

OUTPUT = "output"
"""Name of the output of a network that returns one tensor."""

OutputKind = Literal["classes", "class map", "values"]
"""What an output holds: logits of one class per sample, logits of a class at each position, or any other values."""

_FEWEST_MAP_AXES = 3


def named_outputs(returned: Any) -> dict[str, Tensor]:
    """Return every tensor that a network returned, by the path to it: `out`, `0` or `0.boxes`.

    Tuples, lists, dictionaries, named tuples and dataclasses may be nested. What is not a tensor is left out. A network
    that returns one tensor has one output, named `output`.

    Args:
        returned: what the network's forward pass returned.

    Raises:
        ModelError: two outputs have the same path.

    >>> import torch
    >>> list(named_outputs({"out": torch.zeros(1), "heads": (torch.zeros(1), 0.5, [torch.zeros(1)])}))
    ['out', 'heads.0', 'heads.2.0']
    >>> list(named_outputs(torch.zeros(1)))
    ['output']
    """
    found: dict[str, Tensor] = {}
    for path, leaf in _leaves(returned, ()):
        if not isinstance(leaf, Tensor):
            continue
        name = ".".join(path) or OUTPUT
        if name in found:
            raise ModelError(
                f"The paths of a network's outputs must differ, but two are {name!r}. Rename one of the keys."
            )
        found[name] = leaf
    return found


def sample_outputs(returned: Any, samples: int) -> dict[str, Tensor]:
    """Return the floating-point outputs with one entry per sample, by name: what can be trained on and compared.

    Integers, booleans, and constants without a batch axis, such as anchors, are left out.

    Args:
        returned: what the network's forward pass returned.
        samples: number of samples in the batch.

    Raises:
        ModelError: no output is left.

    >>> import torch
    >>> list(sample_outputs((torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), torch.ones(())), samples=2))
    ['0']
    """
    every = named_outputs(returned)
    found = {name: tensor for name, tensor in every.items() if tensor.is_floating_point() and _fits(tensor, samples)}
    if not found:
        listed = ", ".join(f"{name} {tuple(tensor.shape)} {tensor.dtype}" for name, tensor in every.items())
        raise ModelError(
            "A network must return at least one floating-point tensor with one entry per sample, but for "
            f"{samples} samples it returns {listed or type(returned).__name__}. Wrap it in a module that returns the "
            "values before they are rounded, selected or detached from the batch."
        )
    return found


def matching_outputs(returned: Any, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the outputs that correspond to a teacher's outputs in eval mode, by the teacher's names.

    A student in training may return more: auxiliary outputs are left out. Where the teacher returns one tensor, and the
    student a tuple or record, as GoogLeNet does in training, it is the first one of the teacher's shape.

    Args:
        returned: what the student's forward pass returned.
        expected: the teacher's outputs for the same inputs.

    Raises:
        ModelError: an output is missing or has another shape.

    >>> import torch
    >>> teacher, auxiliary = torch.zeros(2, 5), torch.ones(2, 5)
    >>> matching_outputs((teacher, auxiliary), {"output": teacher})["output"] is teacher
    True
    """
    found = named_outputs(returned)
    if list(expected) == [OUTPUT] and OUTPUT not in found:
        alike = [tensor for tensor in found.values() if tensor.shape == expected[OUTPUT].shape]
        found |= {OUTPUT: alike[0]} if alike else {}
    if any(name not in found or found[name].shape != tensor.shape for name, tensor in expected.items()):
        raise ModelError(
            f"Teacher and student must return the same outputs, got {described(expected)} values per sample from the "
            f"teacher and {described(found)} from the student. Give a student with the teacher's outputs."
        )
    return {name: found[name] for name in expected}


def joined_outputs(batches: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Concatenate the outputs of several batches along the batch axis, by name.

    >>> import torch
    >>> joined_outputs([{"out": torch.zeros(2, 3)}, {"out": torch.zeros(1, 3)}])["out"].shape
    torch.Size([3, 3])
    """
    parts = list(batches)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def class_scores(output: Tensor, num_classes: int | None) -> Tensor | None:
    """Return an output as class logits `(rows, classes)`: one row per sample, or per position of a class map.

    The classes are on the second axis, as torch's losses have them, or else on the last axis of a map.

    Args:
        output: `(samples, classes)`, `(samples, classes, *positions)` or `(samples, *positions, classes)`.
        num_classes: number of classes of the network; None or 0 if it is not known to be a classifier.

    Returns:
        The logits; None if the output does not hold any.

    >>> import torch
    >>> class_scores(torch.zeros(2, 5, 4, 4), 5).shape, class_scores(torch.zeros(2, 5), None)
    (torch.Size([32, 5]), None)
    """
    if not num_classes:
        return None
    axis = next(
        (axis for axis in (1, output.ndim - 1) if 0 < axis < output.ndim and output.shape[axis] == num_classes), 0
    )
    return output.movedim(axis, -1).reshape(-1, num_classes) if axis else None


def kind_of(output: Tensor, num_classes: int | None) -> OutputKind:
    """Return what an output holds.

    >>> import torch
    >>> [kind_of(torch.zeros(2, *shape), 5) for shape in ((5,), (5, 4, 4), (4,), ())]
    ['classes', 'class map', 'values', 'values']
    """
    if class_scores(output, num_classes) is None:
        return "values"
    return "class map" if output.ndim >= _FEWEST_MAP_AXES else "classes"


def class_logits(outputs: Mapping[str, Tensor], num_classes: int | None) -> Tensor | None:
    """Return the first output with one class per sample, `(samples, classes)`; None if there is none."""
    return next((found for found in outputs.values() if kind_of(found, num_classes) == "classes"), None)


def require_logits(returned: Any, num_classes: int | None) -> Tensor:
    """Return the first output with one class per sample, `(samples, classes)`, in float32.

    Args:
        returned: what the network's forward pass returned.
        num_classes: number of classes.

    Raises:
        ModelError: there is none.
    """
    outputs = named_outputs(returned)
    logits = class_logits(outputs, num_classes)
    if logits is None:
        raise ModelError(
            f"Class logits (samples, {num_classes or 'classes'}) are needed, but the network returns "
            f"{described(outputs)} values per sample. Set num_classes to the number of its class logits."
        )
    return logits.float()


def described(outputs: Mapping[str, Tensor]) -> str:
    """Return the shapes of outputs for messages, without the batch axis.

    >>> import torch
    >>> described({"output": torch.zeros(2, 5)}), described({"out": torch.zeros(2, 5), "aux": torch.zeros(2)})
    ('(5,)', 'out (5,), aux ()')
    """
    shapes = {name: tuple(tensor.shape[1:]) for name, tensor in outputs.items()}
    return str(shapes[OUTPUT]) if list(shapes) == [OUTPUT] else ", ".join(f"{name} {shapes[name]}" for name in shapes)


def nested_outputs(outputs: Mapping[str, Any]) -> Any:
    """Return outputs in the structure that their paths describe: tuples for positions, dictionaries for keys.

    It is the network's own structure, with lists as tuples, records as dictionaries, and without what is not a tensor.

    >>> nested_outputs({"out": 1, "heads.0": 2, "heads.1": 3}), nested_outputs({"output": 1})
    ({'out': 1, 'heads': (2, 3)}, 1)
    """
    if list(outputs) == [OUTPUT]:
        return outputs[OUTPUT]
    tree: dict[str, Any] = {}
    for path, value in outputs.items():
        *parents, last = path.split(".")
        place = tree
        for key in parents:
            place = place.setdefault(key, {})
        place[last] = value
    return _with_tuples(tree)


def _with_tuples(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    children = {key: _with_tuples(child) for key, child in tree.items()}
    return tuple(children.values()) if _are_positions(list(children)) else children


def _are_positions(keys: Sequence[str]) -> bool:
    return list(keys) == [str(index) for index in range(len(keys))]


def _fits(tensor: Tensor, samples: int) -> bool:
    return tensor.ndim > 0 and len(tensor) == samples


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for keys, leaf in pytree.tree_flatten_with_path(_plain(value))[0]:
        inner = (*path, *map(_text, keys))
        if (inside := _plain(leaf)) is leaf:
            yield inner, leaf
        else:
            yield from _leaves(inside, inner)


def _plain(value: Any) -> Any:
    """Return a record or container that torch does not know as a dictionary or list; anything else as it is."""
    if not pytree.tree_is_leaf(value):
        return value
    if isinstance(value, Mapping):
        return dict(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return list(value) if isinstance(value, (tuple, list)) else value


def _text(key: Any) -> str:
    """Return one step of a path without its punctuation."""
    return str(next(getattr(key, name) for name in ("key", "idx", "name") if hasattr(key, name)))
