"""The locks by which one run has an output folder to itself, and the ranks of that run share its shards.

Every lock is one on a file (`flock`), which the operating system frees when its holder dies, however it dies. On a
network file system the server keeps the locks: NFS version 4 does, and version 3 with its lock daemon, for Linux turns
`flock` there into a lock at the server; it frees those of a machine that is gone when their lease ends, after about a
minute and a half. Claim files with heartbeats would need clocks that agree, and time limits that a slow shard breaks.

Where locks do not reach from machine to machine, two ranks may make the same shard. That wastes time and harms
nothing: a shard is the same bytes whoever makes it, and appears by renaming a complete file.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Self

from filelock import FileLock, Timeout

from dfq_plugins.errors import DataError
from dfq_plugins.storage.files import LOCK_FILE, explained
from dfq_plugins.storage.rank import Rank

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

POLL_SECONDS = 0.1
"""How often a rank looks again for a lock that another holds."""

PATIENCE_SECONDS = 15.0
"""How long a rank waits for the folder: its siblings hold it for moments, those of a run that was stopped are dying."""


class HeldFile:
    """An exclusive lock on a file of its own, across processes and threads; the file is gone when it is given back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # thread_local=False: a run may be closed by another thread than the one that began it.
        self._lock = FileLock(path, thread_local=False)

    def take(self) -> bool:
        """Take the lock if nobody holds it, without waiting; tell whether it is held now.

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
        """Give the lock back and remove its file; does nothing where the lock is not held."""
        if not self._lock.is_locked:
            return
        # Removed while still held: a run that opened the old file meanwhile finds it unlinked and refuses it.
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
    """Lets one run at a time write into a folder: a single process, or all the ranks of one `torchrun`.

    `.dfq-lock` is the door. A single process holds it as long as it writes. A rank holds it while it comes in, and from
    then on a lock of its own beside it, which says to whoever comes later that a run of this name is at work.

    Args:
        folder: the output folder, which exists.
        rank: which process of the run this is.
    """

    def __init__(self, folder: Path, rank: Rank | None = None) -> None:
        self._folder = folder
        self._rank = rank or Rank()
        self._door = HeldFile(folder / LOCK_FILE)
        self._own = HeldFile(folder / f"{LOCK_FILE}.{self._rank.run}.rank-{self._rank.index}")
        self._claimed: HeldFile | None = None

    def acquire(self) -> bool:
        """Come in, and keep the door shut behind: `admit_siblings` opens it. Tell whether this run was there before.

        A rank waits a little for the door; a single process never does.

        Raises:
            DataError: another run is at work in the folder, or the folder is not writable.
        """
        deadline = time.monotonic() + (0 if self._rank.alone else PATIENCE_SECONDS)
        while True:
            if self._door.take():
                runs = self._runs_at_work()
                if runs <= {self._rank.run} and (self._rank.alone or self._own.take()):
                    return bool(runs)
                self._door.release()
            if time.monotonic() >= deadline:
                raise DataError(
                    f"Another run is writing into {self._folder}, and two runs never share an output folder. "
                    "Wait until it ends, or choose another output folder."
                )
            time.sleep(POLL_SECONDS)

    def admit_siblings(self) -> None:
        """Open the door to the other ranks of this run, once the folder holds its plan."""
        if not self._rank.alone:
            self._door.release()

    def claim(self, name: str) -> HeldFile | None:
        """Claim a part of the work for this rank, or return None where a sibling is at it."""
        claimed = HeldFile(self._folder / f"{LOCK_FILE}.{name}")
        if not claimed.take():
            return None
        self._claimed = claimed  # so that a run that ends by an exception gives it back
        return claimed

    def is_claimed(self, name: str) -> bool:
        """Tell whether a rank seems to be at a part of the work; the claim of a dead one may still lie there."""
        return (self._folder / f"{LOCK_FILE}.{name}").exists()

    def release(self) -> None:
        """Give everything back; does nothing where nothing is held."""
        for held in (self._claimed, self._own, self._door):
            if held is not None:
                held.release()

    def _runs_at_work(self) -> set[str]:
        """Return the names of the runs that have ranks alive in the folder, and remove what dead ranks left."""
        names = set()
        with explained(self._folder):
            for path in sorted(self._folder.glob(f"{LOCK_FILE}.*")):
                with HeldFile(path) as leftover:
                    if not leftover.take() and ".rank-" in path.name:
                        names.add(path.name.removeprefix(f"{LOCK_FILE}.").partition(".rank-")[0])
        return names
