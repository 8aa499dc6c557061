"""Tells faults of the machine, such as too little memory, from faults of a model. Imports no torch."""

from __future__ import annotations

import re

_PATTERNS: tuple[tuple[str, str], ...] = (
    (
        r"can't start new thread|pthread_create|Resource temporarily unavailable|thread constructor failed",
        "threads were refused. Allow more threads, or use fewer with --threads and OMP_NUM_THREADS",
    ),
    (
        r"(can't|[Cc]annot|[Ff]ailed to) allocate memory|not enough memory|bad_alloc|out of memory",
        "memory ran out. Free memory, or use fewer or smaller samples",
    ),
    (
        r"[Nn]o (working )?(C\+\+ )?compiler|InvalidCxxCompiler|(compiler|g\+\+|gcc|clang|cl\.exe).* not found",
        "a C++ compiler is missing. Install one",
    ),
    (r"[Tt]oo many open files", "too many files are open. Raise the limit (ulimit -n)"),
)


def environment_fault(error: BaseException) -> str | None:
    """Return what this machine lacks and the next step, or None where the error is not about the machine.

    Args:
        error: what was raised; its causes are looked at as well.

    >>> environment_fault(MemoryError("64 GB"))
    'memory ran out. Free memory, or use fewer or smaller samples (64 GB).'
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
            return f"the operating system refused: {text}."
        link = link.__cause__
    return None
