"""What to do when memory runs out: the same in two halves, once."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

logger = logging.getLogger(__name__)

_CPU_ALLOCATOR = "can't allocate memory"
"""What torch's allocator on the processor says, in an error that has no class of its own."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that the memory of the GPU or of the computer does not suffice.

    >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("shapes differ"))
    (True, False)
    """
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or _CPU_ALLOCATOR in str(error)


def halves(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Split tensors of equal length into two parts each, the first the larger by at most one.

    >>> [len(part) for (part,) in halves(torch.zeros(5))]
    [3, 2]
    """
    size = (len(tensors[0]) + 1) // 2
    return list(zip(*(torch.split(tensor, size) for tensor in tensors), strict=True))


def forward(model: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """Return `model(inputs)`, half by half where it does not fit into memory at once; samples do not mix in it."""
    try:
        return model(inputs)
    except Exception as error:
        if not is_out_of_memory(error) or len(inputs) < 2:  # noqa: PLR2004  one sample has no halves
            raise
    # Here the failed pass is gone: while its error is handled, the traceback keeps the tensors alive.
    note_halving(len(inputs))
    return torch.cat([model(part) for (part,) in halves(inputs)])


def note_halving(samples: int) -> None:
    """Free what can be freed, and say what happens."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    logger.warning(
        "Memory does not suffice for %d samples at once: going on with two halves and the statistics of both together.",
        samples,
    )
