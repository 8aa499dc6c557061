"""What happens where the step cannot be compiled, or what was compiled cannot be kept. Imports no torch."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import logging
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from dfq_plugins.errors import first_line

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
"""Environment variable of torch: the folder in which it keeps what it compiled."""

_NO_COMPILER = re.compile(r"InvalidCxxCompiler|\bno\b.*\bcompiler\b", re.IGNORECASE)


def explained_failure(error: Exception) -> str:
    """Return one line: that the work goes on uncompiled, why, and what would mend it.

    >>> explained_failure(PermissionError(13, "Permission denied", "/cache"))  # doctest: +ELLIPSIS
    "Compilation failed (PermissionError: [Errno 13] Permission denied: '/cache'); continuing uncompiled, ...
    """
    reason = f"{type(error).__name__}: {first_line(error)}"
    return f"Compilation failed ({reason}); continuing uncompiled, more slowly. {_remedy(error)}"


def _remedy(error: BaseException) -> str:
    everything = " ".join(f"{type(cause).__name__}: {cause}" for cause in _causes(error))
    if _NO_COMPILER.search(everything):
        return "Install a C++ compiler (g++ or clang++), name it in CXX, or set compile=never."
    if any(isinstance(cause, OSError) for cause in _causes(error)) or "Errno" in everything:
        return "Point TORCHINDUCTOR_CACHE_DIR at a folder that can be written, or set compile=never."
    return "Set compile=never to do without from the start."


def _causes(error: BaseException | None) -> list[BaseException]:
    """Return an error and what it came from.

    >>> [type(cause).__name__ for cause in _causes(KeyError())]
    ['KeyError']
    """
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


@contextlib.contextmanager
def writable_compile_cache() -> Iterator[None]:
    """Let torch keep its compilations in a temporary folder where the one that the user named cannot be written.

    Without one torch cannot even import its compiler, on which its optimizers depend.
    """
    named = os.environ.get(CACHE_VARIABLE)
    reason = None if named is None else _refusal(named)
    if reason is None:
        yield
        return
    logger.warning(
        "The compile cache %s cannot be written (%s): what is compiled is kept for this run alone. "
        "Point %s at a folder that can be written.",
        *(named, reason, CACHE_VARIABLE),
    )
    with tempfile.TemporaryDirectory(prefix="dfq-compiled-", ignore_cleanup_errors=True) as folder:
        os.environ[CACHE_VARIABLE] = folder
        try:
            yield
        finally:
            os.environ[CACHE_VARIABLE] = str(named)


def compiled_before(key: str) -> bool:
    """Tell whether a step of this description was compiled on this machine, so that its code is at hand.

    Args:
        key: everything that the code depends on.
    """
    return _mark_of(key).exists()


def remember_compiled(key: str) -> None:
    """Leave an empty file in the compile cache, which says so; where it cannot be written, nothing is remembered."""
    with contextlib.suppress(OSError):
        _mark_of(key).touch()


def _mark_of(key: str) -> Path:
    folder = os.environ.get(CACHE_VARIABLE) or f"{tempfile.gettempdir()}/torchinductor_{getpass.getuser()}"  # as torch
    return Path(folder) / f"dfq-compiled-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def _refusal(folder: str) -> str | None:
    """Return why a folder cannot be written, or None where it can."""
    try:
        os.makedirs(folder, exist_ok=True)  # noqa: PTH103  the variable's text, as torch takes it
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or str(error)
