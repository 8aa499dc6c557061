"""Initial weights of a student, copied from the corresponding layers of the teacher.

A network with fewer blocks starts far ahead of random weights when it is initialized from some of the teacher's blocks:
the first and the last of each stage, and evenly spaced ones in between. Source: Sanh et al. 2019 (arXiv 1910.01108,
section 2), who take every second layer.
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
    """Copy the weights of the teacher's layers into the student's corresponding layers, in place, where shapes match.

    Args:
        teacher: trained network.
        student: network whose layers have the same names as the teacher's; it may have fewer blocks in a sequence.

    Returns:
        Names of the student's layers that were initialized.

    Raises:
        UsageError: no layer matches.

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
            "A student inherits from teacher layers with the same names and shapes, and there are none: the teacher "
            f"has {_layers(teacher)}, the student {_layers(student)}. Start from the student's own weights (inherit "
            "off)."
        )
    return tuple(filled)


def counterparts(student: nn.Module, teacher: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """Yield each module of the student with its name and the corresponding module of the teacher."""
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
    """Map index `place` of `few` items to an index of `many`: first to first, last to last, the others evenly spaced.

    >>> [spread_over(place, 3, 9) for place in range(3)]
    [0, 4, 8]
    """
    return 0 if few == 1 else round(place * (many - 1) / (few - 1))


def _is_sequence(module: nn.Module) -> bool:
    """Return whether a module is a sequence of blocks of one type."""
    return isinstance(module, nn.Sequential | nn.ModuleList) and len({type(child) for child in module.children()}) == 1


def _own(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters and buffers of the module itself, without those of its children."""
    return {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}


def _shapes(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _layers(network: nn.Module, shown: int = 3) -> str:
    """List the first few layers with their shapes, for a message."""
    shapes = [f"{name!r} {tuple(module.weight.shape)}" for name, module in network.named_modules() if _weighs(module)]
    return ", ".join(shapes[:shown]) + (" and more" if len(shapes) > shown else "")


def _weighs(module: nn.Module) -> bool:
    return isinstance(getattr(module, "weight", None), torch.Tensor)
