"""Keeps CPU memory allocated between optimization steps. Imports no torch.

The library never calls this, because it changes the whole process. The command line does, and a program may wrap its
own calls: `with kept_memory(): dfq_plugins.synthesize(...)`.

Each optimization step frees its activations and allocates the same sizes again. The C library returns blocks of that
size to the system, which must clear and map every page again: up to half of a step's time. On Linux with glibc
(`mallopt(3)`), the blocks are kept while the context is open. On other systems, nothing happens.
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
"""Numbers of these settings in malloc.h."""

LARGEST = 2**31 - 1
MEBIBYTE = 2**20

SMALL_BLOCKS = MEBIBYTE // 4
"""Bytes reserved for small blocks while memory is kept."""

HUGE_PAGES_VARIABLE = "THP_MEM_ALLOC_ENABLE"
"""Environment variable that torch reads once: allocate tensors on huge pages if the system offers them."""


@contextlib.contextmanager
def kept_memory() -> Iterator[None]:
    """Keep freed memory in the process while the context is open; then return free memory to the system.

    Afterwards, blocks of 32 MiB and more are returned to the system when freed. glibc's dynamic adjustment ends at the
    same threshold in a process that uses large blocks.

    In a thread that once failed to allocate memory, blocks are not reused: glibc then takes them from elsewhere.
    """
    library = _glibc()
    if library is None:
        yield
        return
    library.mallopt(TRIM_THRESHOLD, LARGEST)
    library.mallopt(MMAP_THRESHOLD, LARGEST)
    library.mallopt(MMAP_MAX, 0)
    fence = _reserve_small_blocks(library)
    try:
        yield
    finally:
        library.free(fence)
        library.mallopt(MMAP_MAX, 65536)
        library.mallopt(MMAP_THRESHOLD, 32 * MEBIBYTE)
        library.mallopt(TRIM_THRESHOLD, 64 * MEBIBYTE)
        library.malloc_trim(0)


def prefer_huge_pages() -> None:
    """Request huge pages from torch unless the user set the variable; call it before the first tensor is allocated."""
    os.environ.setdefault(HUGE_PAGES_VARIABLE, "1")


def _reserve_small_blocks(library: ctypes.CDLL) -> ctypes.c_void_p:
    """Reserve a free range of the heap for small blocks; return the block behind it, which keeps the range until freed.

    Tensors are aligned, so a tensor needs a larger block than it occupies. A small block placed in the difference keeps
    the next tensor of that size from the same address. The reserved range fits small blocks better. Without it, this
    happened in one process out of seven (up to 14 more copies, depending on where the heap began); with it, once in
    300 processes.
    """
    library.malloc.argtypes, library.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    library.free.argtypes, library.free.restype = [ctypes.c_void_p], None
    reserved, fence = library.malloc(SMALL_BLOCKS), ctypes.c_void_p(library.malloc(64))
    library.free(reserved)
    return fence


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") and hasattr(library, "mallopt") else None
