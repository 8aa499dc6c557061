"""An activation record as generators use it, with checks that it is intact and matches the model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import safetensors.torch
from safetensors import SafetensorError

from dfq_plugins.errors import DataError, ModelError
from dfq_plugins.network.digest import model_digest
from dfq_plugins.recording.factors import ClassGaussians
from dfq_plugins.recording.info import INFO_FILE, NEXT_STEP, TENSOR_FILE, RecordInfo, read_info, write_info
from dfq_plugins.recording.units import OUTPUT, find_layers
from dfq_plugins.storage.files import create_folder, remove_empty, write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from dfq_plugins.recording.info import Layer
    from dfq_plugins.recording.options import Statistic
    from dfq_plugins.types import InputSpec


@dataclass(frozen=True)
class ActivationRecord:
    """The record of a network and its data.

    Args:
        folder: folder of the record.
        info: the contents of `record.json`.
        tensors: the statistics, by the names listed in docs/file-formats.md.
    """

    folder: Path
    info: RecordInfo
    tensors: Mapping[str, Tensor]

    @classmethod
    def open(cls, folder: Path) -> ActivationRecord:
        """Read a record and check that it is intact.

        Raises:
            DataError: a file is missing, truncated or damaged, or a newer version wrote it.
        """
        info = read_info(folder)
        path = folder / TENSOR_FILE
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(f"The record's file {path} cannot be read ({error.strerror}). {NEXT_STEP}") from error
        found = hashlib.sha256(data).hexdigest()
        if found != info.sha256:
            raise DataError(f"{path} is damaged: its SHA-256 should be {info.sha256}, but is {found}. {NEXT_STEP}")
        try:
            return cls(folder, info, safetensors.torch.load(data))
        except SafetensorError as error:
            raise DataError(f"{path} is damaged: it is not a safetensors file ({error}). {NEXT_STEP}") from error

    def gaussians(self, name: str) -> ClassGaussians:
        """Return the Gaussians of one statistic, such as `top`, `all.2`, `spectral`, `pairs` or `dropout.0.all.2`."""
        return ClassGaussians(self.tensors[f"{name}.mean"], self.tensors[f"{name}.factor"])

    @property
    def hidden(self) -> list[str]:
        """Names of the recorded layers except the output."""
        return [layer.name for layer in self.info.layers if layer.name != OUTPUT]

    def masks(self, number: int) -> dict[str, Tensor]:
        """Return a dropout filter: the kept units by layer name and for `input`."""
        prefix = f"dropout.{number}.kept."
        return {
            name.removeprefix(prefix): mask.bool() for name, mask in self.tensors.items() if name.startswith(prefix)
        }

    def require(self, statistic: Statistic) -> None:
        """Check that the record holds a statistic.

        Raises:
            DataError: it does not.
        """
        if statistic not in self.info.statistics:
            raise DataError(
                f"The record {self.folder} holds {', '.join(self.info.statistics)}, but not {statistic!r}. Use the "
                f"generator of one of these, or record the model again with --statistics {statistic}."
            )

    def check_model(self, model: nn.Module, spec: InputSpec) -> None:
        """Check that the model is the one that was recorded, with the same layer shapes.

        Raises:
            ModelError: the digest or the shape of a layer differs.
        """
        digest = model_digest(model)
        if digest != self.info.model_digest:
            raise ModelError(
                f"The record {self.folder} was made from another model: its model digest is "
                f"{self.info.model_digest}, this model's is {digest}. Use the model that was recorded, or record this "
                "one with dfq record."
            )
        found = {layer.name: layer for layer in find_layers(model, spec, self.hidden, self.info.units)}
        for layer in self.info.layers:
            _check_shape(layer, found[layer.name], self, spec)


def _check_shape(recorded: Layer, found: Layer, record: ActivationRecord, spec: InputSpec) -> None:
    if recorded.shape != found.shape:
        raise ModelError(
            f"The layer {recorded.name!r} has another shape: {recorded.shape} in the record {record.folder}, but "
            f"{found.shape} for inputs of shape {spec.shape}. The record was made with inputs of shape "
            f"{record.info.input_spec.shape}: use that shape, or record the model again."
        )


def write_record(folder: Path, info: RecordInfo, tensors: Mapping[str, Tensor]) -> ActivationRecord:
    """Write a record into a new or empty folder; the description is written last, so that it never lacks its tensors.

    Args:
        folder: folder of the record.
        info: description of the record; its checksum is filled in.
        tensors: the statistics.

    Raises:
        DataError: the folder is not writable; nothing is left in it.
    """
    created = create_folder(folder)
    data = safetensors.torch.save({name: tensor.contiguous() for name, tensor in sorted(tensors.items())})
    info = replace(info, sha256=hashlib.sha256(data).hexdigest())
    try:
        write_atomically(folder / TENSOR_FILE, data)
        write_info(folder, info)
    except BaseException:
        (folder / TENSOR_FILE).unlink(missing_ok=True)
        remove_empty(created)
        raise
    return ActivationRecord(folder, info, tensors)


def require_free(folder: Path) -> None:
    """Check that a folder is missing or empty, before any work is done.

    Raises:
        DataError: it is a file, or not empty.
    """
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists():
        held = "a record" if (folder / INFO_FILE).is_file() else "other files"
        raise DataError(
            f"A record needs a new folder, but {folder} already holds {held}. Delete it, or choose another folder."
        )
