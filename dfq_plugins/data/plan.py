"""The plan of a data set: the shards that a run writes, their seed, and the check that a folder matches it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dfq_plugins.data.manifest import GeneratorRecord, Manifest, Settings, ShardRecord, shard_file
from dfq_plugins.errors import DataError, UsageError
from dfq_plugins.storage.canonical_json import short_digest
from dfq_plugins.storage.versions import library_versions

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dfq_plugins.types import Specification

_SHOWN_DIFFERENCES = 4


@dataclass(frozen=True)
class ShardPlan:
    """A unit of work: shard `index` with `num_samples` samples."""

    index: int
    num_samples: int


@dataclass(frozen=True)
class DatasetPlan:
    """The data set that a run is to synthesize.

    Args:
        model_digest: digest of the network, so that no folder mixes the samples of two networks.
        generator: the generator with all its options.
        seed: any integer; the same seed gives the same samples.
        spec: the input specification.
        num_samples: total number of samples.
        shard_size: maximum number of samples per shard. Shards that already exist in the folder keep their sizes.
        labels: source of the labels: "conditional" (the generator's classes), "teacher" (the network's predictions) or
            "none".
        max_seconds: the time budget of the run, if any; it may change when the run is resumed.

    Raises:
        UsageError: num_samples or shard_size is not positive.
    """

    model_digest: str
    generator: GeneratorRecord
    seed: int
    spec: Specification
    num_samples: int
    shard_size: int
    labels: str = "none"
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("num_samples", self.num_samples), ("shard_size", self.shard_size)):
            if value < 1:
                raise UsageError(f"{name} must be at least 1, got {value}.")

    @property
    def settings(self) -> Settings:
        """The settings that the bytes of a shard depend on, in addition to its index and size."""
        budgeted = self.max_seconds is not None
        return Settings(self.model_digest, self.generator, self.seed, self.spec, self.labels, budgeted)

    def manifest(self, kept: tuple[ShardRecord, ...] = ()) -> Manifest:
        """Return the manifest of an unfinished run: the `kept` shards, then new ones up to `num_samples`.

        >>> from dfq_plugins.types import InputSpec
        >>> plan = DatasetPlan("digest", GeneratorRecord("uniform", "dfq-x", "1.0"), 0, InputSpec((3,)), 300, 128)
        >>> [shard.num_samples for shard in plan.manifest().shards]
        [128, 128, 44]
        """
        present = sum(shard.num_samples for shard in kept)
        added = self._shards(start=len(kept), num_samples=self.num_samples - present)
        return Manifest(
            state="incomplete",
            model_digest=self.model_digest,
            generator=self.generator,
            seed=self.seed,
            input_spec=self.spec,
            labels=self.labels,
            num_samples=self.num_samples,
            shards=(*kept, *added),
            versions=library_versions(),
            max_seconds=self.max_seconds,
        )

    def _shards(self, *, start: int, num_samples: int) -> Iterator[ShardRecord]:
        for index, first in enumerate(range(0, num_samples, self.shard_size), start):
            yield ShardRecord(index, min(self.shard_size, num_samples - first), shard_file(index))


def check_same_settings(folder: Path, present: Settings, requested: Settings) -> None:
    """Check that the data set in `folder` has the requested settings.

    Raises:
        DataError: it belongs to another model or has other settings; the message shows both and the differences.
    """
    if present.model_digest != requested.model_digest:
        raise DataError(
            f"{folder} holds the data set of another model: its model digest is {short_digest(present.model_digest)}, "
            f"this model's is {short_digest(requested.model_digest)}. Choose another output folder."
        )
    if present.digest != requested.digest:
        raise DataError(
            f"{folder} holds a data set with other settings (digest {short_digest(present.digest)}, requested "
            f"{short_digest(requested.digest)}): {_differences(present.as_json(), requested.as_json())}. "
            "Use the same settings to resume or extend it, or choose another output folder."
        )


def _differences(present: dict[str, Any], requested: dict[str, Any]) -> str:
    old, new = dict(_flattened(present)), dict(_flattened(requested))
    names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    shown = [f"{name} is {old.get(name)!r}, requested {new.get(name)!r}" for name in names[:_SHOWN_DIFFERENCES]]
    more = len(names) - len(shown)
    return "; ".join([*shown, f"and {more} more"] if more else shown)


def _flattened(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings under dotted names."""
    for name, item in value.items():
        if isinstance(item, dict):
            yield from _flattened(item, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", item
