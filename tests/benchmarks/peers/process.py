"""A peer in a process of its own, spoken to over a pipe: an order as a line of JSON, an answer as another."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class PeerProcess:
    """Runs a worker that says `{"ready": true}` and then answers orders.

    Args:
        command: the interpreter, the worker's file and its arguments.
    """

    def __init__(self, command: Sequence[str | Path]) -> None:
        self._command = [str(part) for part in command]

    def __enter__(self) -> Self:
        """Start the process and wait until it has loaded its network."""
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._answer()
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def ask(self, **order: Any) -> dict[str, Any]:
        """Return the answer to an order."""
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        sys.exit(f"The peer's process ended: {' '.join(self._command)}")
