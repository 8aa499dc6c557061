"""The records of `manifest.json`, which describes a data set, and their JSON. Imports neither torch nor pydantic.

See docs/file-formats.md for the format. The bytes depend only on the records: sorted keys, no timestamps.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from dfq_plugins.errors import DataError
from dfq_plugins.storage.canonical_json import jsonable, sha256_of
from dfq_plugins.storage.files import write_atomically

# pydantic resolves the annotations below at run time, so this import cannot move into the TYPE_CHECKING block.
from dfq_plugins.types import Specification  # noqa: TC001

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import TypeAdapter

MANIFEST_FILE = "manifest.json"

FORMAT_VERSION = 2
"""Version 2 stores a network's outputs by name; version 1 had a tensor `logits`, and only of classifiers."""


def shard_file(index: int) -> str:
    """Return the file name of shard `index`.

    >>> shard_file(3)
    'shard-00003.safetensors'
    """
    return f"shard-{index:05d}.safetensors"


@dataclass(frozen=True)
class GeneratorRecord:
    """The generator that made the samples: its name, its distribution and version, and its options.

    The options are values with a JSON form; a tuple equals a list.
    """

    name: str
    provider: str
    version: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """All settings that the bytes of a shard depend on, in addition to its index and size."""

    model_digest: str
    generator: GeneratorRecord
    seed: int
    input_spec: Specification
    labels: str
    budgeted: bool = False

    @property
    def digest(self) -> str:
        """SHA-256 of the settings as canonical JSON, in hexadecimal."""
        return sha256_of(self.as_json())

    def as_json(self) -> dict[str, Any]:
        """Return the settings as JSON types, the same for `(0, 1)` and `[0.0, 1.0]`."""
        settings = _canonical(_adapter(Settings), self)
        # Omitted without a budget, so that sets from before budgets existed keep their digests.
        return settings if self.budgeted else {key: value for key, value in settings.items() if key != "budgeted"}

    def identity(self, index: int, num_samples: int) -> str:
        """Return the digest that identifies a shard with these settings, in hexadecimal."""
        return sha256_of([self.digest, index, num_samples])

    def shard_seed(self, index: int) -> int:
        """Return the seed of shard `index`: 63 bits, independent of the seeds of other shards."""
        return int(sha256_of([self.digest, "seed", index])[:16], 16) >> 1


@dataclass(frozen=True)
class ShardRecord:
    """One shard of the plan: its index, size and file, and the file's SHA-256 once it is finished.

    `iterations` is the number of iterations that a time budget allowed; None if the options set the number.
    """

    index: int
    num_samples: int
    file: str
    sha256: str | None = None
    iterations: int | None = None


@dataclass(frozen=True)
class Manifest:
    """The contents of `manifest.json`: the plan of a run when it starts, the checksums of a data set when it ends.

    Args:
        state: "incomplete" until every shard is written and checked.
        model_digest: digest of the network that the samples were synthesized from.
        generator: the generator of the samples.
        seed: seed of the whole set.
        input_spec: the input specification.
        labels: source of the labels: "conditional", "teacher" or "none".
        num_samples: total number of samples in the shards.
        shards: the shards in order.
        versions: versions of Python and the libraries that finished the run.
        divergence: divergence of each layer's statistics, by layer name; empty until the set is complete.
        max_seconds: time budget of the run that finished the set; None without a budget.
        format_version: version of this format.

    Raises:
        ValueError: the shards are inconsistent, or a complete set lacks a checksum.
    """

    state: Literal["incomplete", "complete"]
    model_digest: str
    generator: GeneratorRecord
    seed: int
    input_spec: Specification
    labels: str
    num_samples: int
    shards: tuple[ShardRecord, ...]
    versions: dict[str, str] = field(default_factory=dict)
    divergence: dict[str, float] = field(default_factory=dict)
    max_seconds: float | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        for position, shard in enumerate(self.shards):
            # Fixed names ensure that a manifest cannot point to a file outside its folder.
            if shard.index != position or shard.file != shard_file(position) or shard.num_samples < 1:
                raise ValueError(f"shard {position} of the plan is {shard}")
            if self.state == "complete" and shard.sha256 is None:
                raise ValueError(f"{shard.file} has no checksum, although the set is complete")
        total = sum(shard.num_samples for shard in self.shards)
        if total != self.num_samples:
            raise ValueError(f"the shards hold {total} samples, not the {self.num_samples} of num_samples")

    @property
    def settings(self) -> Settings:
        """The settings that the bytes of the shards depend on."""
        budgeted = self.max_seconds is not None
        return Settings(self.model_digest, self.generator, self.seed, self.input_spec, self.labels, budgeted)


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of the data set in `folder`, complete or not.

    Raises:
        DataError: there is none, it is not valid JSON or not a valid manifest, or a newer version wrote it.
    """
    path = folder / MANIFEST_FILE
    try:
        return _parse(json.loads(path.read_bytes()), path)
    except FileNotFoundError:
        raise DataError(
            f"{folder} is not a data set: it has no {MANIFEST_FILE}. Give the folder of a synthesis."
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). Give the folder of a synthesis.") from error
    except ValueError as error:
        raise DataError(
            f"{path} is not a valid manifest: {_first_line(error)}. "
            "Restore it from a copy, or delete the folder and synthesize again."
        ) from error


def _parse(data: object, path: Path) -> Manifest:
    version = data.get("format_version") if isinstance(data, dict) else None
    if not isinstance(version, int):
        raise ValueError("it has no format_version")  # noqa: TRY004 - wrong file content, not a wrong argument type
    if version > FORMAT_VERSION:
        raise DataError(
            f"{path} has format version {version}, but this dfq-plugins reads versions up to {FORMAT_VERSION}. "
            "Install a newer dfq-plugins."
        )
    manifest: Manifest = _adapter(Manifest).validate_python(data)
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` atomically.

    Raises:
        DataError: the folder cannot be written.
    """
    data = _without_budget(_canonical(_adapter(Manifest), manifest))
    # Sorted, so that the order of mappings does not change the bytes; layers keep the network's order.
    ordered = {**json.loads(json.dumps(data, sort_keys=True)), "divergence": data["divergence"]}
    text = json.dumps(ordered, indent=2, allow_nan=False)
    write_atomically(folder / MANIFEST_FILE, f"{text}\n".encode())


def _without_budget(data: dict[str, Any]) -> dict[str, Any]:
    """Omit the budget fields if there is no budget."""
    if data["max_seconds"] is not None:
        return data
    shards = [{key: value for key, value in shard.items() if key != "iterations"} for shard in data["shards"]]
    return {key: value for key, value in data.items() if key != "max_seconds"} | {"shards": shards}


def _canonical(adapter: TypeAdapter[Any], record: Settings | Manifest) -> dict[str, Any]:
    """Return a record as JSON types, the same before writing as after reading."""
    # Round trip through the validated record: 1 and 1.0 in a float field become the same value.
    return dict(jsonable(adapter.validate_python(jsonable(record))))


@functools.cache
def _adapter(record: type[Any]) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter  # noqa: PLC0415  heavy

    return TypeAdapter(record)


def _first_line(error: ValueError) -> str:
    """Return the field and message of the first error in pydantic's list."""
    from pydantic import ValidationError  # noqa: PLC0415  heavy

    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else first["msg"]
