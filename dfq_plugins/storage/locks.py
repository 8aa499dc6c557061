"""Locks that give one run exclusive use of an output folder and divide its shards among its ranks.

Every lock is a file lock (`flock`), which the operating system releases when its holder dies, however it dies. On a
network file system, the server keeps the locks: NFS version 4 does, and so does version 3 with its lock daemon, because
Linux turns `flock` into a lock on the server there. The server releases the locks of a lost machine when their lease
expires, after about a minute and a half. Claim files with heartbeats would need synchronized clocks, and timeouts that
a slow shard exceeds.

If locks do not work across machines, two ranks may make the same shard. That wastes time but does no harm: every rank
makes the same bytes, and a shard appears by renaming a complete file.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from filelock import FileLock, Timeout

from dfq_plugins.errors import DataError
from dfq_plugins.storage.files import LOCK_FILE, create_folder, explained, remove_temporary_files
from dfq_plugins.storage.rank import Rank

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

POLL_SECONDS = 0.1
"""How often a rank retries a lock that another rank holds."""

PATIENCE_SECONDS = 15.0
"""How long a rank waits for the folder: its siblings hold it only briefly, and ranks of a stopped run are exiting."""


class HeldFile:
    """An exclusive lock on a dedicated file, across processes and threads; the file is removed on release."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # thread_local=False: a run may be closed by a different thread than the one that began it.
        self._lock = FileLock(path, thread_local=False)

    def take(self) -> bool:
        """Try to take the lock without waiting; return whether it is held now.

        Raises:
            DataError: the folder cannot be written.
        """
        with explained(self.path):
            try:
                self._lock.acquire(blocking=False)
            except Timeout:
                return False
        return True

    def release(self) -> None:
        """Release the lock and remove its file; does nothing if the lock is not held."""
        if not self._lock.is_locked:
            return
        # Remove the file while holding the lock: a run that has already opened it sees it unlinked and rejects it.
        with contextlib.suppress(OSError):
            self.path.unlink()
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class FolderLock:
    """Lets one run at a time write into a folder: a single process, or all ranks of one `torchrun`.

    `.dfq-lock` guards entry. A single process holds it as long as it writes. A rank holds it only while it enters; from
    then on it holds a separate lock, which shows later arrivals that a run of this name is active.

    Args:
        folder: the output folder, which must exist.
        rank: this process's rank in the run.
    """

    def __init__(self, folder: Path, rank: Rank | None = None) -> None:
        self._folder = folder
        self._rank = rank or Rank()
        self._entry_lock = HeldFile(folder / LOCK_FILE)
        self._rank_lock = HeldFile(folder / f"{LOCK_FILE}.{self._rank.run}.rank-{self._rank.index}")
        self._claimed: HeldFile | None = None

    def acquire(self) -> bool:
        """Enter the folder and keep the entry lock until `admit_siblings`; return whether this run was active before.

        A rank waits briefly for the entry lock; a single process never does.

        Raises:
            DataError: another run is active in the folder, or the folder is not writable.
        """
        deadline = time.monotonic() + (0 if self._rank.alone else PATIENCE_SECONDS)
        while True:
            if self._entry_lock.take():
                runs = self._active_runs()
                if runs <= {self._rank.run} and (self._rank.alone or self._rank_lock.take()):
                    return bool(runs)
                self._entry_lock.release()
            if time.monotonic() >= deadline:
                raise DataError(
                    f"Another run is writing into {self._folder}, and two runs cannot share an output folder. "
                    "Wait until it finishes, or choose another output folder."
                )
            time.sleep(POLL_SECONDS)

    def admit_siblings(self) -> None:
        """Release the entry lock for the other ranks of this run, once the folder holds its plan."""
        if not self._rank.alone:
            self._entry_lock.release()

    def claim(self, name: str) -> HeldFile | None:
        """Claim a part of the work for this rank; return None if a sibling holds it."""
        claimed = HeldFile(self._folder / f"{LOCK_FILE}.{name}")
        if not claimed.take():
            return None
        self._claimed = claimed  # released by release() if the run ends with an exception
        return claimed

    def is_claimed(self, name: str) -> bool:
        """Return whether a part of the work seems to be claimed; the claim of a dead rank may still exist."""
        return (self._folder / f"{LOCK_FILE}.{name}").exists()

    def release(self) -> None:
        """Release all locks; does nothing if none are held."""
        for held in (self._claimed, self._rank_lock, self._entry_lock):
            if held is not None:
                held.release()

    def _active_runs(self) -> set[str]:
        """Return the names of the runs with live ranks in the folder, and remove the locks that dead ranks left."""
        names = set()
        with explained(self._folder):
            for path in sorted(self._folder.glob(f"{LOCK_FILE}.*")):
                with HeldFile(path) as leftover:
                    if not leftover.take() and ".rank-" in path.name:
                        names.add(path.name.removeprefix(f"{LOCK_FILE}.").partition(".rank-")[0])
        return names


@contextlib.contextmanager
def work_folder(work: Path | str | None, *, writes: bool = True) -> Iterator[Path | None]:
    """Create the folder of a run that can be resumed, and lock it against other runs within the block.

    Args:
        work: the folder; None stays None.
        writes: whether this process writes into it; of several, the others only read.

    Raises:
        DataError: the folder cannot be written, or another run writes into it.
    """
    if work is None:
        yield None
        return
    folder = Path(work).absolute()
    create_folder(folder)
    lock = FolderLock(folder)
    if writes:
        lock.acquire()
    try:
        if writes:
            remove_temporary_files(folder)
        yield folder
    finally:
        lock.release()
