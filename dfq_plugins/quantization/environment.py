"""Distinguishes problems of the machine, such as too little memory, from problems of a model. Does not import torch."""

from __future__ import annotations

import re

_PATTERNS: tuple[tuple[str, str], ...] = (
    (
        r"can't start new thread|pthread_create|Resource temporarily unavailable|thread constructor failed",
        "no more threads could be started. Allow more threads, or use fewer with --threads and OMP_NUM_THREADS",
    ),
    (
        r"(can't|[Cc]annot|[Ff]ailed to) allocate memory|not enough memory|bad_alloc|out of memory",
        "out of memory. Free memory, or use fewer or smaller samples",
    ),
    (
        r"[Nn]o (working )?(C\+\+ )?compiler|InvalidCxxCompiler|(compiler|g\+\+|gcc|clang|cl\.exe).* not found",
        "a C++ compiler is missing. Install one",
    ),
    (r"[Tt]oo many open files", "too many files are open. Raise the limit (ulimit -n)"),
)


def environment_fault(error: BaseException) -> str | None:
    """Return the machine's problem and the next step, or None if the error is not about the machine.

    Args:
        error: the raised error; its causes are checked as well.

    >>> environment_fault(MemoryError("64 GB"))
    'out of memory. Free memory, or use fewer or smaller samples (64 GB).'
    >>> environment_fault(RuntimeError("no such operator")) is None
    True
    """
    link: BaseException | None = error
    while link is not None:
        text = str(link).strip().split("\n", maxsplit=1)[0]
        if isinstance(link, MemoryError):
            return f"{_PATTERNS[1][1]} ({text or 'MemoryError'})."
        for pattern, advice in _PATTERNS:
            if re.search(pattern, str(link)):
                return f"{advice} ({text})."
        if isinstance(link, OSError):
            return f"the operating system reported an error: {text}."
        link = link.__cause__
    return None
