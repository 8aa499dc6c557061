"""Recovery from out-of-memory errors: retry once in two halves."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree

from dfq_plugins.inputs import cloned, count
from dfq_plugins.network.outputs import joined_outputs, sample_outputs

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from dfq_plugins.types import Inputs

logger = logging.getLogger(__name__)

_CPU_ALLOCATOR = "can't allocate memory"
"""Message of torch's CPU allocator, whose error has no dedicated class."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that the GPU or the computer ran out of memory.

    >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("shapes differ"))
    (True, False)
    """
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or _CPU_ALLOCATOR in str(error)


def halves(first: Inputs, *others: Any) -> list[tuple[Any, ...]]:
    """Split inputs, tensors and containers of them into two parts each; the first is larger by at most one.

    >>> [len(part) for (part,) in halves(torch.zeros(5))]
    [3, 2]
    """
    size = (count(first) + 1) // 2
    parts = (slice(size), slice(size, None))
    return [tuple(pytree.tree_map(lambda tensor, part=part: tensor[part], (first, *others))) for part in parts]


def forward(model: Callable[[Inputs], Any], inputs: Inputs) -> dict[str, Tensor]:
    """Return the outputs of `model(inputs)` by name, in two halves if they do not fit into memory.

    Samples must not affect each other. The model gets copies, because its forward pass may write into its input.
    """
    try:
        return sample_outputs(model(cloned(inputs)), count(inputs))
    except Exception as error:
        if not is_out_of_memory(error) or count(inputs) < 2:  # noqa: PLR2004  one sample has no halves
            raise
    # Outside the handler, so that the failed pass is freed: until then the traceback keeps its tensors alive.
    note_halving(count(inputs))
    return joined_outputs(sample_outputs(model(cloned(part)), count(part)) for (part,) in halves(inputs))


def note_halving(samples: int) -> None:
    """Free cached GPU memory and log that the batch is halved."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    logger.warning(
        "Out of memory for a batch of %d samples: continuing with two halves and their combined statistics.",
        samples,
    )
