"""One shard: a safetensors file that identifies its samples and carries a checksum of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import safetensors.torch
from safetensors import SafetensorError

from dfq_plugins.errors import DataError
from dfq_plugins.inputs import count, map_inputs
from dfq_plugins.storage.files import write_atomically
from dfq_plugins.types import Batch

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch

    from dfq_plugins.data.manifest import Manifest, ShardRecord

METADATA_KEY = "dfq"
"""The only key of the safetensors metadata: the library writes several keys in random order."""

CACHE_BYTES = 32 * 2**20
"""Bytes of loaded shards that a data set caches, whatever its size; the latest shard always stays."""

_FIELDS = ("inputs", "labels", "outputs")
_FORMER_OUTPUT = "logits"
"""Name of the only output in shards of manifest version 1."""


def flattened(batch: Batch) -> dict[str, torch.Tensor]:
    """Return the tensors of a batch under the names that a file gives them: `inputs`, or `inputs.image` and so on."""
    named: dict[str, torch.Tensor] = {}
    for field, value in zip(_FIELDS, batch, strict=True):
        if isinstance(value, Mapping):
            named |= {f"{field}.{name}": tensor for name, tensor in value.items()}
        elif value is not None:
            named[field] = value
    return named


def unflattened(tensors: Mapping[str, torch.Tensor]) -> Batch:
    """Return the batch with these tensors; the inverse of `flattened`, with dictionaries sorted by name."""
    inputs, labels, outputs = (_field(tensors, field) for field in _FIELDS)
    former = tensors.get(_FORMER_OUTPUT)
    return Batch(inputs, labels, outputs if former is None else {"output": former})


def _field(tensors: Mapping[str, torch.Tensor], field: str) -> Any:
    named = {
        name.removeprefix(f"{field}."): tensor
        for name, tensor in sorted(tensors.items())
        if name.startswith(f"{field}.")
    }
    return named or tensors.get(field)


@dataclass(frozen=True)
class ShardProof:
    """The metadata of a shard: its index, its size, the identity of its settings, and its tensors' SHA-256.

    With a time budget, also the number of iterations.
    """

    index: int
    num_samples: int
    identity: str
    sha256: str
    iterations: int | None = None


@dataclass(frozen=True)
class ShardContents:
    """The contents of a valid shard file: its proof, the SHA-256 of the whole file, and its tensors' row shapes."""

    proof: ShardProof
    file_sha256: str
    rows: dict[str, tuple[int, ...]]


def write_shard(path: Path, batch: Batch, *, index: int, identity: str, iterations: int | None = None) -> None:
    """Write `batch` atomically: inputs `(N, *shape)` float32, labels `(N,)` int64, outputs `(N, ...)` float32.

    Each output is stored under its name after the prefix `outputs.`.

    Raises:
        DataError: the file cannot be written; no partial file is left.
    """
    tensors = flattened(batch)
    proof = asdict(ShardProof(index, count(batch.inputs), identity, _tensor_digest(tensors), iterations))
    if iterations is None:
        del proof["iterations"]
    metadata = {METADATA_KEY: json.dumps(proof, sort_keys=True)}
    write_atomically(path, safetensors.torch.save(tensors, metadata))


def inspect_shard(path: Path, sha256: str | None = None) -> ShardContents:
    """Read a shard, check its tensors against its proof, and check its file against `sha256` if given.

    Raises:
        DataError: the file is missing or unreadable, or its tensors have changed since it was written.
    """
    data = _read(path, sha256)
    tensors, proof = _decode(path, data)
    found = _tensor_digest(tensors)
    if found != proof.sha256:
        raise DataError(_damage_message(path, proof.sha256, found))
    rows = {name: tuple(tensor.shape[1:]) for name, tensor in tensors.items()}
    return ShardContents(proof, hashlib.sha256(data).hexdigest(), rows)


def check_alike(shards: Sequence[ShardRecord], found: Sequence[ShardContents]) -> None:
    """Check that all shards hold the same tensors per sample.

    Raises:
        DataError: a shard differs from the first.
    """
    for shard, inspection in zip(shards, found, strict=True):
        if inspection.rows != found[0].rows:
            raise DataError(
                f"{shard.file} holds {inspection.rows} per sample, but the first shard holds {found[0].rows}. "
                "A generator must yield the same tensors for every shard."
            )


def load_shard(path: Path, sha256: str | None = None) -> Batch:
    """Load the samples of a shard, after checking its file against `sha256` if given.

    Raises:
        DataError: the file is missing or unreadable, or its checksum differs.
    """
    tensors, _ = _decode(path, _read(path, sha256))
    return unflattened(tensors)


def _damage_message(path: Path, expected: str, found: str) -> str:
    return f"{path} is damaged: its SHA-256 should be {expected}, but is {found}. {_next_step(path)}"


def _next_step(path: Path) -> str:
    again = f"run the same synthesis into {path.parent} again: it makes only the missing shards"
    return f"Restore the file from a copy, or delete it and {again}."


def _read(path: Path, sha256: str | None) -> bytes:
    """Return the bytes of a shard file; the library's memory map would crash if the file were truncated meanwhile."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"The shard {path} is missing. {_next_step(path)}") from None
    except OSError as error:
        raise DataError(f"The shard {path} cannot be read ({error.strerror}). {_next_step(path)}") from error
    if sha256 is not None and (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise DataError(_damage_message(path, sha256, found))
    return data


def _decode(path: Path, data: bytes) -> tuple[dict[str, torch.Tensor], ShardProof]:
    try:
        tensors = safetensors.torch.load(data)
        # The library checks the header but does not return the metadata of bytes. The format: length, then JSON.
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        proof = ShardProof(**json.loads(header["__metadata__"][METADATA_KEY]))
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged: it is not a readable shard ({error}). {_next_step(path)}") from error
    inputs = [tensor for name, tensor in tensors.items() if name.partition(".")[0] == "inputs"]
    if not inputs or any(len(tensor) != proof.num_samples for tensor in inputs):
        raise DataError(
            f"{path} is damaged: it does not hold the {proof.num_samples} inputs that it declares. {_next_step(path)}"
        )
    return tensors, proof


def _tensor_digest(tensors: dict[str, torch.Tensor]) -> str:
    """Return the SHA-256 of the names, types, shapes and values of contiguous tensors, in any order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()


class ShardCache:
    """Loads shards on demand, checks each once and again after a change, and caches the latest up to some bytes."""

    def __init__(self, folder: Path, manifest: Manifest, limit: int | None = None) -> None:
        self._folder = folder
        self._manifest = manifest
        self._limit = CACHE_BYTES if limit is None else limit
        self._checked: dict[int, tuple[int, ...]] = {}
        self._loaded: dict[int, Batch] = {}  # oldest use first

    def __getstate__(self) -> dict[str, Any]:
        # A worker process loads the shards that it needs instead of receiving tensors.
        return {**self.__dict__, "_loaded": {}}

    def __getitem__(self, index: int) -> Batch:
        """Return the samples of shard `index`; do not modify them, since the next reader gets the same tensors."""
        batch = self._loaded.pop(index, None)
        if batch is None:
            batch = self._load(index)
        self._loaded[index] = batch
        self._evict()
        return batch

    @property
    def loaded_bytes(self) -> int:
        """Bytes of cached tensors."""
        return sum(_num_bytes(batch) for batch in self._loaded.values())

    def check(self, index: int) -> None:
        """Check the file of shard `index` again, even if it is cached.

        Raises:
            DataError: the file is missing or damaged.
        """
        self._checked.pop(index, None)
        self._load(index)

    def _load(self, index: int) -> Batch:
        record, spec = self._manifest.shards[index], self._manifest.input_spec
        path = self._folder / record.file
        state = _state_of(path)
        known = state is not None and self._checked.get(index) == state
        tensors, proof = _decode(path, _read(path, None if known else record.sha256))
        identity = self._manifest.settings.identity(record.index, record.num_samples)
        if (proof.index, proof.identity) != (record.index, identity):
            raise DataError(
                f"{path} does not belong to this data set: it is shard {proof.index} of a run with other settings, or "
                f"of another network. {_next_step(path)}"
            )
        batch = unflattened(tensors)
        found = map_inputs(lambda tensor: tuple(tensor.shape), batch.inputs)
        expected = spec.map(lambda one: (record.num_samples, *one.shape))
        if found != expected:
            raise DataError(
                f"{path} does not match its manifest: its inputs have shape {found}, not {expected}. {_next_step(path)}"
            )
        if state is not None:
            self._checked[index] = state
        # A file sorts its tensors by name; the specification knows the order of the inputs.
        return batch._replace(inputs=spec.map(lambda _, tensor: tensor, batch.inputs))

    def _evict(self) -> None:
        while len(self._loaded) > 1 and self.loaded_bytes > self._limit:
            del self._loaded[next(iter(self._loaded))]


def _state_of(path: Path) -> tuple[int, ...] | None:
    """Return what changes when a file is written again; None if there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def _num_bytes(batch: Batch) -> int:
    return sum(tensor.nbytes for tensor in flattened(batch).values())
