"""What a run and its folder agree on before the first shard: whose the folder is, and which shards it is to hold."""

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
    """Refuse a folder that is not ours before anything is written into it.

    Raises:
        DataError: it holds files and no manifest.
    """
    if not folder.is_dir() or (folder / MANIFEST_FILE).exists():
        return
    foreign = sorted(path.name for path in folder.iterdir() if not is_own_leftover(path))
    if foreign:
        raise DataError(
            f"{folder} holds files but no data set: there is {foreign[0]!r} and no {MANIFEST_FILE}. "
            "Choose a new or empty output folder."
        )


def agreed_manifest(folder: Path, plan: DatasetPlan) -> Manifest:
    """Return the manifest that this run goes by, and write it where it is not the folder's own. The lock is held.

    Raises:
        DataError: the folder holds another model's data set or one of other settings, or cannot be written.
        UsageError: it holds more samples than are asked for.
    """
    present = read_manifest(folder) if (folder / MANIFEST_FILE).exists() else None
    kept = () if present is None else _kept_shards(folder, present)
    if present is not None and kept:  # a run that left no shard behind binds nobody to its settings
        check_same_settings(folder, present.settings, plan.settings)
        _check_enough(folder, plan, sum(shard.num_samples for shard in kept))
    manifest = plan.manifest(kept)
    if present is not None and (present.shards, present.settings.digest) == (manifest.shards, manifest.settings.digest):
        return replace(present, max_seconds=plan.max_seconds)
    write_manifest(folder, manifest)
    return manifest


def _kept_shards(folder: Path, present: Manifest) -> tuple[ShardRecord, ...]:
    """Return the shards up to the last that was ever written; beyond them an unfinished plan is free to change."""
    there = {shard.index for shard in present.shards if (folder / shard.file).exists()}
    written = there | {shard.index for shard in present.shards if shard.sha256 is not None}
    kept = present.shards[: max(written, default=-1) + 1]
    # A file that was deleted is made anew, and proves itself until the set is complete again.
    return tuple(shard if shard.index in there else replace(shard, sha256=None) for shard in kept)


def siblings_manifest(folder: Path, plan: DatasetPlan) -> Manifest:
    """Return the manifest that another rank of this run wrote, provided that both were asked for the same.

    Raises:
        DataError: the other was given other settings.
        UsageError: it was asked for another number of samples.
    """
    present = read_manifest(folder)
    check_same_settings(folder, present.settings, plan.settings)
    if present.num_samples != plan.num_samples:
        raise UsageError(
            f"The ranks of one run make one set, but one was asked for {present.num_samples} samples and one for "
            f"{plan.num_samples}. Start all of them with the same command."
        )
    return present


def _check_enough(folder: Path, plan: DatasetPlan, present: int) -> None:
    if plan.num_samples < present:
        raise UsageError(
            f"{folder} holds {present} samples already, and {plan.num_samples} are asked. A set only grows: ask for "
            f"{present} or more, or choose another output folder."
        )
