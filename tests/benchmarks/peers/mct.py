"""Sony's Model Compression Toolkit, in a virtual environment of its own: installed here, spoken to over a pipe."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any, Self

import torch

REQUIREMENTS = ("model-compression-toolkit==2.6.1", "torch", "torchvision")
WORKER = Path(__file__).with_name("mct_worker.py")


class ModelCompressionToolkit:
    """A process of the peer's environment that makes images with the peer's own defaults.

    Args:
        folder: where the environment lies, or is made.
        network: which network, see `mct_worker.py`.
        threads: processor threads.
    """

    def __init__(self, folder: Path, network: str, threads: int) -> None:
        self._command = [str(_environment(folder)), str(WORKER), network, str(threads)]

    def __enter__(self) -> Self:
        """Start the process and wait until it has loaded the network."""
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._answer()
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def make(self, images: int, iterations: int | None, output: Path | None = None) -> float:
        """Make images and return the seconds that it took.

        Args:
            images: how many.
            iterations: None for the peer's default.
            output: file for the images `(images, *shape)`, as a tensor.
        """
        order = {"images": images, "iterations": iterations, "output": str(output) if output else None}
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return float(self._answer()["seconds"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        sys.exit(f"The peer's process ended: {' '.join(self._command)}")


def _environment(folder: Path) -> Path:
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *REQUIREMENTS], check=True)
    return python


def load_images(path: Path) -> torch.Tensor:
    """Return what the worker saved."""
    images: torch.Tensor = torch.load(path, weights_only=True)
    return images.float()
