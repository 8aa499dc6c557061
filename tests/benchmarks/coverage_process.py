"""Runs a function in a process of its own, forked from one that has everything loaded, within limits."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

POLL_SECONDS = 0.1
TICKS = os.sysconf("SC_CLK_TCK")

Record = dict[str, Any]


@dataclass(frozen=True)
class Limits:
    """What one process may use.

    Args:
        processor_seconds: processor time of the process and its children, which does not depend on the neighbors.
        seconds: time on the clock; ends what waits for ever.
        mebibytes: resident memory of the process.
    """

    processor_seconds: float = 240.0
    seconds: float = 1200.0
    mebibytes: int = 8192

    def exceeded(self, processor_seconds: float, seconds: float, mebibytes: int) -> str | None:
        """Return which limit is exceeded, in words."""
        if mebibytes > self.mebibytes:
            return f"more than {self.mebibytes} MiB of memory"
        if processor_seconds > self.processor_seconds:
            return f"more than {self.processor_seconds:.0f} s of processor time"
        return f"more than {self.seconds:.0f} s" if seconds > self.seconds else None


@dataclass(frozen=True)
class Ended:
    """How a process ended: the parts that it wrote, what it used, and why it was killed."""

    parts: list[Record]
    peak_mebibytes: int
    return_code: int
    killed: str | None
    processor_seconds: float
    last_words: str


def run_forked(work: Callable[[Callable[[Record], None]], None], limits: Limits) -> Ended:
    """Call `work(write)` in a forked process and kill it at a limit.

    Each part that it writes is kept in a file at once, so that a process that is killed leaves what it knew. Its
    temporary files and its children go with it.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.monotonic()
        process = os.fork()
        if process == 0:
            _work_and_exit(work, folder)
        peak, used, killed = 0, 0.0, None
        while not (status := os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT)):
            time.sleep(POLL_SECONDS)
            peak, used = max(peak, _peak_mebibytes(process)), max(used, _processor_seconds(process))
            if killed := limits.exceeded(used, time.monotonic() - began, peak):
                os.killpg(process, signal.SIGKILL)
                status = os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
                break
        used = max(used, _processor_seconds(process))
        os.waitpid(process, 0)
        parts_file, log = folder / "parts.jsonl", folder / "log"
        lines = parts_file.read_text().splitlines() if parts_file.is_file() else []
        words = log.read_text(errors="replace").strip().splitlines() if log.is_file() else []
        parts = [json.loads(line) for line in lines if line.endswith("}")]
    code = status.si_status if status.si_code == os.CLD_EXITED else -status.si_status
    return Ended(parts, peak, code, killed, round(used, 1), (words or [""])[-1])


def _work_and_exit(work: Callable[[Callable[[Record], None]], None], folder: Path) -> NoReturn:
    """Do the work of the forked process; never return to the caller's frames."""
    code = 1
    try:
        os.setpgid(0, 0)
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
        log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        with (folder / "parts.jsonl").open("a") as file:

            def write(part: Record) -> None:
                file.write(json.dumps(part) + "\n")
                file.flush()

            work(write)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:  # noqa: BLE001  the caller reads the last line
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _peak_mebibytes(process: int) -> int:
    """Return the peak resident memory of a process; 0 if it is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM")), 0)


def _processor_seconds(process: int) -> float:
    """Return the processor time of a process and of its children that ended; 0 if it is gone."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / TICKS
