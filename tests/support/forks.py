"""Starts processes in a moment, by forking one that has imported torch; see fork_server.py."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path


class ForkServer:
    """Starts processes in a moment, by forking one that has imported torch; see fork_server.py."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process = process
        self._folder = folder
        self._ask(None)
        self._count = 0

    def start(self, code: str, **environment: str) -> int:
        """Run `code` in a new process and return its id."""
        self._count += 1
        self.log = self._folder / f"{self._count}.log"
        return self._ask({"code": code, "environment": environment, "log": str(self.log)})

    def wait(self, process: int) -> int:
        """Return the exit code of a process that was started, negative for a signal."""
        return self._ask({"wait": process})

    def _ask(self, job: dict | None) -> int:
        if job is not None:
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline().strip()
        return 0 if answer == "ready" else json.loads(answer)
