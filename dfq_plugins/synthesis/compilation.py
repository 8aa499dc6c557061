"""Handles failed compilation and an unusable compile cache. Imports no torch."""

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
"""Environment variable of torch: the folder of its compile cache."""

_NO_COMPILER = re.compile(r"InvalidCxxCompiler|\bno\b.*\bcompiler\b", re.IGNORECASE)


def explained_failure(error: Exception) -> str:
    """Return a one-line message: compilation failed, the reason, and how to fix it.

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
        return "Point TORCHINDUCTOR_CACHE_DIR to a writable folder, or set compile=never."
    return "Set compile=never to skip compilation."


def _causes(error: BaseException | None) -> list[BaseException]:
    """Return an error and its chain of causes.

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
    """Use a temporary compile cache if the folder that the user set is not writable.

    Without a writable cache torch cannot even import its compiler, on which its optimizers depend.
    """
    named = os.environ.get(CACHE_VARIABLE)
    reason = None if named is None else _write_error(named)
    if reason is None:
        yield
        return
    logger.warning(
        "The compile cache %s is not writable (%s), so compiled code is kept only for this run. "
        "Point %s to a writable folder.",
        *(named, reason, CACHE_VARIABLE),
    )
    with tempfile.TemporaryDirectory(prefix="dfq-compiled-", ignore_cleanup_errors=True) as folder:
        os.environ[CACHE_VARIABLE] = folder
        try:
            yield
        finally:
            os.environ[CACHE_VARIABLE] = str(named)


def compiled_before(key: str) -> bool:
    """Return whether a step with this description was compiled on this machine before, so that its code is cached.

    Args:
        key: description of everything that the code depends on.
    """
    return _marker_path(key).exists()


def remember_compiled(key: str) -> None:
    """Mark a step as compiled by an empty file in the compile cache; do nothing if it is not writable."""
    with contextlib.suppress(OSError):
        _marker_path(key).touch()


def _marker_path(key: str) -> Path:
    folder = os.environ.get(CACHE_VARIABLE) or f"{tempfile.gettempdir()}/torchinductor_{getpass.getuser()}"  # torch's
    return Path(folder) / f"dfq-compiled-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def _write_error(folder: str) -> str | None:
    """Return the reason why a folder is not writable, or None if it is."""
    try:
        os.makedirs(folder, exist_ok=True)  # noqa: PTH103  the variable's text, as torch uses it
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or str(error)
