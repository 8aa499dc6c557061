"""Sony's Model Compression Toolkit, in a virtual environment of its own, which is installed here."""

from __future__ import annotations

import subprocess
import venv
from pathlib import Path

import torch
from peers.process import PeerProcess

REQUIREMENTS = ("model-compression-toolkit==2.6.1", "torch", "torchvision", "safetensors")
WORKER = Path(__file__).with_name("mct_worker.py")


class ModelCompressionToolkit(PeerProcess):
    """A process of the peer's environment that makes images with the peer's own defaults.

    Args:
        folder: where the environment lies, or is made.
        network: which network, see `mct_worker.py`.
        threads: processor threads.
    """

    def __init__(self, folder: Path, network: str, threads: int) -> None:
        super().__init__([_environment(folder), WORKER, network, str(threads)])

    def make(self, images: int, iterations: int | None, output: Path | None = None) -> float:
        """Make images and return the seconds that it took.

        Args:
            images: how many.
            iterations: None for the peer's default.
            output: file for the images `(images, *shape)`, as a tensor.
        """
        answer = self.ask(images=images, iterations=iterations, output=str(output) if output else None)
        return float(answer["seconds"])


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
