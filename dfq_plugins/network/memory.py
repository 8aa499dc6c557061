"""What to do when memory runs out: the same in two halves, once."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import sys
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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


TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
"""Numbers of the settings in malloc.h."""

LARGEST = 2**31 - 1

MEBIBYTE = 2**20

SMALL_BLOCKS = MEBIBYTE // 4
"""Bytes set apart for small blocks while memory is kept."""

HUGE_PAGES_VARIABLE = "THP_MEM_ALLOC_ENABLE"
"""Environment variable of torch, read once: tensors on huge pages where the system offers them."""


@contextlib.contextmanager
def kept_memory() -> Iterator[None]:
    """Keep freed memory in the process while the context is open; what is free at its end goes back to the system.

    Afterwards blocks of 32 MiB and more are the system's again, which is where glibc's own adjustment ends in a process
    that uses large blocks.

    Blocks are not found again in a thread that was once refused memory: glibc takes blocks of this size from elsewhere.
    """
    library = _glibc()
    if library is None:
        yield
        return
    library.mallopt(TRIM_THRESHOLD, LARGEST)
    library.mallopt(MMAP_THRESHOLD, LARGEST)
    library.mallopt(MMAP_MAX, 0)
    fence = _room_for_small_blocks(library)
    try:
        yield
    finally:
        library.free(fence)
        library.mallopt(MMAP_MAX, 65536)
        library.mallopt(MMAP_THRESHOLD, 32 * MEBIBYTE)
        library.mallopt(TRIM_THRESHOLD, 64 * MEBIBYTE)
        library.malloc_trim(0)


def prefer_huge_pages() -> None:
    """Ask torch for huge pages, unless the user has decided; works before torch allocates its first tensor."""
    os.environ.setdefault(HUGE_PAGES_VARIABLE, "1")


def _room_for_small_blocks(library: ctypes.CDLL) -> ctypes.c_void_p:
    """A free stretch of the heap with a block behind it, which is returned and holds the stretch until it is freed.

    A tensor is aligned, so the block it needs is larger than what it occupies. A small block that settles in the
    difference keeps the next tensor of that size from the same place: without this stretch, which fits small blocks
    better, that happened in one process of seven (up to 14 further copies, by where the heap began); with it, in one
    of 300, once.
    """
    library.malloc.argtypes, library.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    library.free.argtypes, library.free.restype = [ctypes.c_void_p], None
    stretch, fence = library.malloc(SMALL_BLOCKS), ctypes.c_void_p(library.malloc(64))
    library.free(stretch)
    return fence


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") and hasattr(library, "mallopt") else None
