"""The records of `manifest.json`, which says what a data set is, and their JSON. Imports neither torch nor pydantic.

See docs/file-formats.md for the format. The bytes are a function of the records: sorted keys, no time stamps.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from dfq_plugins.errors import DataError
from dfq_plugins.storage.canonical_json import jsonable, sha256_of
from dfq_plugins.storage.files import write_atomically

# pydantic resolves the annotations below at run time, so that this cannot move into the TYPE_CHECKING block.
from dfq_plugins.types import InputSpec  # noqa: TC001

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import TypeAdapter

MANIFEST_FILE = "manifest.json"

FORMAT_VERSION = 1


def shard_file(index: int) -> str:
    """Return the name of the file of shard `index`.

    >>> shard_file(3)
    'shard-00003.safetensors'
    """
    return f"shard-{index:05d}.safetensors"


@dataclass(frozen=True)
class GeneratorRecord:
    """Which generator made the samples: its name, the distribution and version that it came from, and its options.

    The options are values that JSON can hold; a tuple equals a list.
    """

    name: str
    provider: str
    version: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """Everything that the bytes of a shard depend on, besides its index and size."""

    model_digest: str
    generator: GeneratorRecord
    seed: int
    input_spec: InputSpec
    labels: str
    budgeted: bool = False

    @property
    def digest(self) -> str:
        """SHA-256 of the settings as canonical JSON, in hexadecimal."""
        return sha256_of(self.as_json())

    def as_json(self) -> dict[str, Any]:
        """Return the settings in JSON's types, the same for `(0, 1)` and `[0.0, 1.0]`."""
        settings = _canonical(_adapter(Settings), self)
        # Absent without a budget: sets from before there were budgets keep their digests.
        return settings if self.budgeted else {key: value for key, value in settings.items() if key != "budgeted"}

    def identity(self, index: int, num_samples: int) -> str:
        """Return the digest that a shard of these settings carries, in hexadecimal."""
        return sha256_of([self.digest, index, num_samples])

    def shard_seed(self, index: int) -> int:
        """Return the seed of shard `index`: 63 bits, independent of every other shard's."""
        return int(sha256_of([self.digest, "seed", index])[:16], 16) >> 1


@dataclass(frozen=True)
class ShardRecord:
    """One shard of the plan: its place, size and file, and once it is finished the file's SHA-256.

    `iterations` says what a budget of time came to; it is None where the options say how many there were.
    """

    index: int
    num_samples: int
    file: str
    sha256: str | None = None
    iterations: int | None = None


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` holds: the plan of a run from its start, the proof of a data set from its end.

    Args:
        state: "incomplete" until every shard is written and checked.
        model_digest: digest of the network that the samples were made from.
        generator: what made them.
        seed: the seed of the whole set.
        input_spec: what one sample looks like.
        labels: where the labels come from, e.g. "conditional" or "teacher".
        num_samples: how many samples the shards hold in all.
        shards: the shards in order.
        versions: the versions of Python and the libraries that the run was finished with.
        divergence: divergence of each layer's statistics, by layer name; empty until complete.
        max_seconds: the budget of the run that finished the set; None where there was none.
        format_version: the version of this format.

    Raises:
        ValueError: the shards do not add up, or a complete set lacks a checksum.
    """

    state: Literal["incomplete", "complete"]
    model_digest: str
    generator: GeneratorRecord
    seed: int
    input_spec: InputSpec
    labels: str
    num_samples: int
    shards: tuple[ShardRecord, ...]
    versions: dict[str, str] = field(default_factory=dict)
    divergence: dict[str, float] = field(default_factory=dict)
    max_seconds: float | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        for position, shard in enumerate(self.shards):
            # The name is fixed, so that no manifest can point at a file outside its folder.
            if shard.index != position or shard.file != shard_file(position) or shard.num_samples < 1:
                raise ValueError(f"shard {position} of the plan is {shard}")
            if self.state == "complete" and shard.sha256 is None:
                raise ValueError(f"{shard.file} has no checksum, although the set is complete")
        total = sum(shard.num_samples for shard in self.shards)
        if total != self.num_samples:
            raise ValueError(f"the shards hold {total} samples, not the {self.num_samples} of num_samples")

    @property
    def settings(self) -> Settings:
        """What the bytes of the shards depend on."""
        budgeted = self.max_seconds is not None
        return Settings(self.model_digest, self.generator, self.seed, self.input_spec, self.labels, budgeted)


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of the data set in `folder`, complete or not.

    Raises:
        DataError: there is none, it is no valid JSON or no valid manifest, or a newer version wrote it.
    """
    path = folder / MANIFEST_FILE
    try:
        return _parse(json.loads(path.read_bytes()), path)
    except FileNotFoundError:
        raise DataError(
            f"{folder} is no data set: it holds no {MANIFEST_FILE}. Give the folder that a synthesis wrote."
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). Give the folder that a synthesis wrote.") from error
    except ValueError as error:
        raise DataError(
            f"{path} is not a valid manifest: {_first_line(error)}. "
            "Restore it from a copy, or delete the folder and synthesize again."
        ) from error


def _parse(data: object, path: Path) -> Manifest:
    version = data.get("format_version") if isinstance(data, dict) else None
    if not isinstance(version, int):
        raise ValueError("it states no format_version")  # noqa: TRY004 - wrong content of a file, not a wrong argument
    if version > FORMAT_VERSION:
        raise DataError(
            f"{path} has format version {version}, and this dfq-plugins reads up to {FORMAT_VERSION}. "
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
    # Sorted, so that no mapping's order changes the bytes; but layers stay in the network's own order.
    ordered = {**json.loads(json.dumps(data, sort_keys=True)), "divergence": data["divergence"]}
    text = json.dumps(ordered, indent=2, allow_nan=False)
    write_atomically(folder / MANIFEST_FILE, f"{text}\n".encode())


def _without_budget(data: dict[str, Any]) -> dict[str, Any]:
    """Leave out the fields of a budget where there is none."""
    if data["max_seconds"] is not None:
        return data
    shards = [{key: value for key, value in shard.items() if key != "iterations"} for shard in data["shards"]]
    return {key: value for key, value in data.items() if key != "max_seconds"} | {"shards": shards}


def _canonical(adapter: TypeAdapter[Any], record: Settings | Manifest) -> dict[str, Any]:
    """Return a record in JSON's types, the same before it was written and after it was read."""
    # Through the validated record and back: 1 and 1.0 in a field of floats are then one and the same.
    return dict(jsonable(adapter.validate_python(jsonable(record))))


@functools.cache
def _adapter(record: type[Any]) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter  # noqa: PLC0415  heavy

    return TypeAdapter(record)


def _first_line(error: ValueError) -> str:
    """Return what is wrong and where, of pydantic's list of errors the first."""
    from pydantic import ValidationError  # noqa: PLC0415  heavy

    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else first["msg"]
