"""Stores the blocks that were reconstructed, so that an interrupted run resumes with the same bytes.

Each block has a file, `block-<index>.safetensors`, with its weights, its scales and the identity of the run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import safetensors.torch
from safetensors import SafetensorError, safe_open

from dfq_plugins.errors import DataError
from dfq_plugins.reconstruction.state import restore
from dfq_plugins.storage.canonical_json import short_digest
from dfq_plugins.storage.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from dfq_plugins.reconstruction.blocks import Block

FORMAT_VERSION = "1"


class BlockStates:
    """The finished blocks in a folder.

    Args:
        folder: an existing folder, locked by the caller.
        identity: digest of everything that the result depends on.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self._folder, self._identity = folder, identity

    def store(self, index: int, block: Block, state: Mapping[str, Tensor]) -> None:
        """Write the state of a block atomically.

        Raises:
            DataError: the folder cannot be written.
        """
        about = {"identity": self._identity, "format_version": FORMAT_VERSION, "block": block.name}
        data = safetensors.torch.save({name: value.contiguous() for name, value in state.items()}, about)
        write_atomically(self._path(index), data)

    def restore(self, index: int, block: Block) -> bool:
        """Restore a block in place, and return whether it was stored.

        Raises:
            DataError: the file is damaged, has a newer format, or belongs to another run.
        """
        path = self._path(index)
        if not path.is_file():
            return False
        try:
            with safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
                self._require_same_run(about)
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
            restore(block, found)
        except (OSError, ValueError, SafetensorError) as error:
            raise DataError(f"{path} is damaged: {error}. Delete it to reconstruct from that block on.") from error
        return True

    def _path(self, index: int) -> Path:
        return self._folder / f"block-{index:04d}.safetensors"

    def _require_same_run(self, about: Mapping[str, str]) -> None:
        if about.get("format_version") != FORMAT_VERSION:
            raise DataError(
                f"The blocks in {self._folder} have format version {about.get('format_version')}, but this dfq-plugins "
                f"reads version {FORMAT_VERSION}. Install the version that wrote them, or choose another folder."
            )
        if about.get("identity") != self._identity:
            raise DataError(
                f"{self._folder} holds blocks of another run (digest {short_digest(about.get('identity', ''))}, this "
                f"run has {short_digest(self._identity)}): the model, the data, the recipe or an option differs. Use "
                "the same ones to resume that run, or choose another folder."
            )
