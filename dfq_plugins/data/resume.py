"""Matches a run with its output folder before the first shard: resumes or extends a set, or rejects the folder."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dfq_plugins.data.manifest import MANIFEST_FILE, read_manifest, write_manifest
from dfq_plugins.data.plan import check_same_settings
from dfq_plugins.errors import DataError, UsageError
from dfq_plugins.storage.files import is_own_leftover

if TYPE_CHECKING:
    from pathlib import Path

    from dfq_plugins.data.manifest import Manifest, ShardRecord
    from dfq_plugins.data.plan import DatasetPlan


def refuse_foreign_files(folder: Path) -> None:
    """Reject a folder with unrelated files before anything is written into it.

    Raises:
        DataError: it holds files but no manifest.
    """
    if not folder.is_dir() or (folder / MANIFEST_FILE).exists():
        return
    foreign = sorted(path.name for path in folder.iterdir() if not is_own_leftover(path))
    if foreign:
        raise DataError(
            f"{folder} holds files but no data set: it has {foreign[0]!r} but no {MANIFEST_FILE}. "
            "Choose a new or empty output folder."
        )


def agreed_manifest(folder: Path, plan: DatasetPlan) -> Manifest:
    """Return the manifest that this run follows, and write it if it differs from the folder's. The lock must be held.

    Raises:
        DataError: the folder holds another model's data set or one with other settings, or is not writable.
        UsageError: it holds more samples than requested.
    """
    present = read_manifest(folder) if (folder / MANIFEST_FILE).exists() else None
    kept = () if present is None else _kept_shards(folder, present)
    if present is not None and kept:  # without shards, the settings of an earlier run do not matter
        check_same_settings(folder, present.settings, plan.settings)
        _refuse_shrinking(folder, plan, sum(shard.num_samples for shard in kept))
    manifest = plan.manifest(kept)
    if present is not None and (present.shards, present.settings.digest) == (manifest.shards, manifest.settings.digest):
        return replace(present, max_seconds=plan.max_seconds)
    write_manifest(folder, manifest)
    return manifest


def _kept_shards(folder: Path, present: Manifest) -> tuple[ShardRecord, ...]:
    """Return the shards up to the last one ever written; the rest of an unfinished plan may change."""
    there = {shard.index for shard in present.shards if (folder / shard.file).exists()}
    written = there | {shard.index for shard in present.shards if shard.sha256 is not None}
    kept = present.shards[: max(written, default=-1) + 1]
    # A deleted file is made again; its checksum is recorded when the set is complete.
    return tuple(shard if shard.index in there else replace(shard, sha256=None) for shard in kept)


def siblings_manifest(folder: Path, plan: DatasetPlan) -> Manifest:
    """Return the manifest that another rank of this run wrote, if both have the same settings.

    Raises:
        DataError: the other rank has other settings.
        UsageError: the other rank requests another number of samples.
    """
    present = read_manifest(folder)
    check_same_settings(folder, present.settings, plan.settings)
    if present.num_samples != plan.num_samples:
        raise UsageError(
            f"All ranks of a run make one set, but one requests {present.num_samples} samples and another "
            f"{plan.num_samples}. Start all ranks with the same command."
        )
    return present


def _refuse_shrinking(folder: Path, plan: DatasetPlan, present: int) -> None:
    if plan.num_samples < present:
        raise UsageError(
            f"{folder} already holds {present} samples, but {plan.num_samples} are requested. A set can only grow: "
            f"request {present} or more, or choose another output folder."
        )
