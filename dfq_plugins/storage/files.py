"""Atomic file writes, and cleanup after killed runs. Imports no torch."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from typing import TYPE_CHECKING

from dfq_plugins.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOCK_FILE = ".dfq-lock"
"""Prefix of every lock file; locks exist while a run writes into the folder. See `dfq_plugins.storage.locks`."""

TEMPORARY_SUFFIX = ".dfq-tmp"
"""Suffix of every incomplete file."""

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_NOT_A_FOLDER = {errno.ENOTDIR, errno.EEXIST}


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an operating system error on writing `path` into an error that says what to do.

    Raises:
        DataError: the disk is full, the folder is not writable, or a parent of the path is a file.
    """
    try:
        yield
    except OSError as error:
        raise DataError(_explain(error, path)) from error


def _explain(error: OSError, path: Path) -> str:
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        full = f"The disk is full: {path} could not be written ({reason}; {_free_bytes(path):,} bytes are free)."
        return f"{full} Free some space and run the same command again: finished shards are kept."
    if error.errno in _FORBIDDEN:
        return f"{path} cannot be written ({reason}). Make its folder writable, or choose another output folder."
    if error.errno in _NOT_A_FOLDER:
        return f"A data set is a folder, but {path} or one of its parents is a file. Choose another output folder."
    return f"{path} could not be written ({reason}). Choose another output folder, or fix this one."


def _free_bytes(path: Path) -> int:
    existing = next((parent for parent in path.parents if parent.is_dir()), path.anchor)
    with contextlib.suppress(OSError):
        return shutil.disk_usage(existing).free
    return 0


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that the file is either complete or absent, even after a power failure.

    Raises:
        DataError: the file could not be written; the temporary file is removed and an existing `path` is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    with explained(path):
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable, on file systems that can open and sync a folder."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def create_folder(folder: Path) -> list[Path]:
    """Create `folder` and its parents; return the folders that were created, deepest first.

    Raises:
        DataError: the folder cannot be created, or is a file.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return missing


def remove_empty(folders: list[Path]) -> None:
    """Remove the empty ones of `folders`, which are given deepest first."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def is_own_leftover(path: Path) -> bool:
    """Return whether `path` is a lock or temporary file of this package, left behind by a killed run.

    >>> from pathlib import Path
    >>> is_own_leftover(Path("out/.manifest.json.71-0a1b2c3d.dfq-tmp")), is_own_leftover(Path("out/notes.txt"))
    (True, False)
    """
    return path.name.startswith(LOCK_FILE) or path.name.endswith(TEMPORARY_SUFFIX)


def remove_temporary_files(folder: Path) -> None:
    """Remove the temporary files of a killed run. Call this only while holding the lock on `folder`."""
    with explained(folder):
        for path in folder.glob(f".*{TEMPORARY_SUFFIX}"):
            path.unlink(missing_ok=True)
