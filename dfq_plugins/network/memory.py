"""Recovery from out-of-memory errors: retry once in two halves."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

from dfq_plugins.network.outputs import joined_outputs, sample_outputs

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

logger = logging.getLogger(__name__)

_CPU_ALLOCATOR = "can't allocate memory"
"""Message of torch's CPU allocator, whose error has no dedicated class."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that the GPU or the computer ran out of memory.

    >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("shapes differ"))
    (True, False)
    """
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or _CPU_ALLOCATOR in str(error)


def halves(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Split tensors of equal length into two parts each; the first is larger by at most one.

    >>> [len(part) for (part,) in halves(torch.zeros(5))]
    [3, 2]
    """
    size = (len(tensors[0]) + 1) // 2
    return list(zip(*(torch.split(tensor, size) for tensor in tensors), strict=True))


def forward(model: Callable[[Tensor], Any], inputs: Tensor) -> dict[str, Tensor]:
    """Return the outputs of `model(inputs)` by name, in two halves if they do not fit into memory.

    Samples must not affect each other.
    """
    try:
        return sample_outputs(model(inputs), len(inputs))
    except Exception as error:
        if not is_out_of_memory(error) or len(inputs) < 2:  # noqa: PLR2004  one sample has no halves
            raise
    # Outside the handler, so that the failed pass is freed: until then the traceback keeps its tensors alive.
    note_halving(len(inputs))
    return joined_outputs(sample_outputs(model(part), len(part)) for (part,) in halves(inputs))


def note_halving(samples: int) -> None:
    """Free cached GPU memory and log that the batch is halved."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    logger.warning(
        "Out of memory for a batch of %d samples: continuing with two halves and their combined statistics.",
        samples,
    )
