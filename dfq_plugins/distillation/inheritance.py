"""First weights of a student: those of the teacher's layers that stand where the student's do.

A network of fewer blocks begins far ahead of random weights where it takes over some of the teacher's blocks: the first
and the last of each stage, and the others evenly between them. Source: Sanh et al. 2019 (arXiv 1910.01108, section 2),
who take every second layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from dfq_plugins.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator


@torch.no_grad()
def inherit_weights(teacher: nn.Module, student: nn.Module) -> tuple[str, ...]:
    """Copy into a student, in place, the weights of those layers of its teacher that have its shapes.

    Args:
        teacher: trained network.
        student: network whose layers bear the teacher's names; of a sequence of blocks it may have fewer.

    Returns:
        Names of the student's layers that were filled.

    Raises:
        UsageError: there are none.

    >>> teacher = nn.Sequential(*(nn.Linear(2, 2) for _ in range(5)))
    >>> student = nn.Sequential(*(nn.Linear(2, 2) for _ in range(3)))
    >>> inherit_weights(teacher, student)
    ('0', '1', '2')
    >>> torch.equal(student[1].weight, teacher[2].weight)
    True
    """
    filled = []
    for name, ours, theirs in counterparts(student, teacher):
        mine, given = _own(ours), _own(theirs)
        if mine and type(ours) is type(theirs) and _shapes(mine) == _shapes(given):
            for key, value in mine.items():
                value.copy_(given[key])
            filled.append(name)
    if not filled:
        raise UsageError(
            "A student inherits from layers that have its names and shapes in the teacher, and there are none: the "
            f"teacher has {_layers(teacher)}, the student {_layers(student)}. Begin with weights of its own (inherit "
            "off)."
        )
    return tuple(filled)


def counterparts(student: nn.Module, teacher: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """Give each module of the student, by its name, with the one of the teacher that stands in its place."""
    yield name, student, teacher
    theirs = dict(teacher.named_children())
    names = list(theirs)
    ours = dict(student.named_children())
    spread = _is_sequence(student) and _is_sequence(teacher)
    for place, (child, module) in enumerate(ours.items()):
        partner = names[spread_over(place, len(ours), len(names))] if spread else child
        if partner in theirs:
            yield from counterparts(module, theirs[partner], f"{name}.{child}" if name else child)


def spread_over(place: int, few: int, many: int) -> int:
    """Return which of many places one of a few stands for: ends for ends, the others evenly between.

    >>> [spread_over(place, 3, 9) for place in range(3)]
    [0, 4, 8]
    """
    return 0 if few == 1 else round(place * (many - 1) / (few - 1))


def _is_sequence(module: nn.Module) -> bool:
    """Whether a module is a row of blocks of one kind."""
    return isinstance(module, nn.Sequential | nn.ModuleList) and len({type(child) for child in module.children()}) == 1


def _own(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters and buffers of a module itself, without those of its children."""
    return {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}


def _shapes(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _layers(network: nn.Module, shown: int = 3) -> str:
    """Return some layers with their shapes, for a message."""
    shapes = [f"{name!r} {tuple(module.weight.shape)}" for name, module in network.named_modules() if _weighs(module)]
    return ", ".join(shapes[:shown]) + (" and more" if len(shapes) > shown else "")


def _weighs(module: nn.Module) -> bool:
    return isinstance(getattr(module, "weight", None), torch.Tensor)
