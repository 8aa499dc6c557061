"""The plan of a data set: which shards a run writes, with which seed, and whether a folder's shards are the same."""

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

    from dfq_plugins.types import InputSpec

_SHOWN_DIFFERENCES = 4


@dataclass(frozen=True)
class ShardPlan:
    """A unit of work: the shard `index`, of `num_samples` samples."""

    index: int
    num_samples: int


@dataclass(frozen=True)
class DatasetPlan:
    """What a run is asked to synthesize.

    Args:
        model_digest: digest of the network, so that no folder mixes the samples of two.
        generator: the generator with all its options.
        seed: any integer; same seed, same samples.
        spec: what one sample looks like.
        num_samples: how many samples in all.
        shard_size: the most samples in one shard. Shards that are in the folder already keep their sizes.
        labels: where the labels come from: "conditional" (asked of the generator), "teacher" (the network's own) or
            "none".
        max_seconds: the budget of the run, if there is one; its length may change when the run is resumed.

    Raises:
        UsageError: num_samples or shard_size is not positive.
    """

    model_digest: str
    generator: GeneratorRecord
    seed: int
    spec: InputSpec
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
        """What the bytes of a shard depend on, besides its index and size."""
        budgeted = self.max_seconds is not None
        return Settings(self.model_digest, self.generator, self.seed, self.spec, self.labels, budgeted)

    def manifest(self, kept: tuple[ShardRecord, ...] = ()) -> Manifest:
        """Return the manifest of an unfinished run: the shards `kept`, then new ones up to the samples asked for.

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


def check_same_settings(folder: Path, present: Settings, asked: Settings) -> None:
    """Make sure that the data set in `folder` is of the settings that are asked for.

    Raises:
        DataError: it is of another model or of other settings; the message names both and what differs.
    """
    if present.model_digest != asked.model_digest:
        raise DataError(
            f"{folder} holds the data set of another model: model digest {short_digest(present.model_digest)} there, "
            f"{short_digest(asked.model_digest)} asked. Choose another output folder."
        )
    if present.digest != asked.digest:
        raise DataError(
            f"{folder} holds a data set of other settings (digest {short_digest(present.digest)} there, "
            f"{short_digest(asked.digest)} asked): {_differences(present.as_json(), asked.as_json())}. "
            "Give the same settings to resume or extend it, or choose another output folder."
        )


def _differences(present: dict[str, Any], asked: dict[str, Any]) -> str:
    there, here = dict(_flat(present)), dict(_flat(asked))
    names = sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
    shown = [f"{name} is {there.get(name)!r} there, {here.get(name)!r} asked" for name in names[:_SHOWN_DIFFERENCES]]
    more = len(names) - len(shown)
    return "; ".join([*shown, f"and {more} more"] if more else shown)


def _flat(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings under dotted names."""
    for name, item in value.items():
        if isinstance(item, dict):
            yield from _flat(item, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", item
