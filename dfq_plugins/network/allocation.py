"""Memory of the processor that is kept between steps, instead of given back and fetched again. Imports no torch.

Nothing in the library calls this by itself, since it changes the whole process: the command line does, and a program
may wrap its own calls, `with kept_memory(): dfq_plugins.synthesize(...)`.

Each step of an optimization frees its activations and asks for the same sizes again. The C library hands blocks of
that size back to the system, which has to clear and map every page anew: up to half of a step's time. On Linux with
glibc (`mallopt(3)`) the blocks are kept while the context is open. Elsewhere nothing happens.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

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
