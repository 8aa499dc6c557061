"""Writes a data set shard by shard, so that a run can stop at any time and resume to the same bytes."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from torch import Tensor
from torch.utils import _pytree as pytree

from dfq_plugins.data.dataset import SyntheticDataset
from dfq_plugins.data.manifest import MANIFEST_FILE, read_manifest, write_manifest
from dfq_plugins.data.plan import ShardPlan
from dfq_plugins.data.resume import agreed_manifest, refuse_foreign_files, siblings_manifest
from dfq_plugins.data.sample_checks import checked_batch
from dfq_plugins.data.shards import check_alike, inspect_shard, load_shard, write_shard
from dfq_plugins.errors import DataError, UsageError
from dfq_plugins.inputs import split
from dfq_plugins.storage.files import create_folder, remove_empty, remove_temporary_files
from dfq_plugins.storage.locks import POLL_SECONDS, FolderLock
from dfq_plugins.storage.versions import library_versions

if TYPE_CHECKING:
    import tempfile
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    import torch

    from dfq_plugins.data.manifest import Manifest, ShardRecord
    from dfq_plugins.data.plan import DatasetPlan
    from dfq_plugins.data.shards import ShardContents
    from dfq_plugins.storage.rank import Rank
    from dfq_plugins.types import Batch, Inputs


class DatasetWriter:
    """One run, or one rank of it, that writes into a folder: begin it, write its shards, finish it.

    A context manager that releases the folder lock at the end, even after an exception. Written shards are kept::

        with DatasetWriter.begin(folder, plan) as writer:
            for shard in writer.shares():
                writer.write(shard, *synthesize(shard.num_samples, seed=writer.shard_seed(shard)))
            writer.await_turn_to_finish()
            data = writer.finish(divergence)
    """

    def __init__(self, folder: Path, manifest: Manifest, lock: FolderLock, *, alone: bool = True) -> None:
        self.folder = folder
        self.manifest = manifest
        self._lock = lock
        self._single_process = alone
        self._written: set[int] = set()
        self._samples_left = manifest.num_samples
        self._closed = False

    @classmethod
    def begin(cls, folder: Path | str, plan: DatasetPlan, rank: Rank | None = None) -> Self:
        """Lock the folder for this run: a new folder, a run to resume, or a finished set to extend.

        An unfinished run with the same settings resumes where it left off. A set with fewer samples than `plan`
        requests gets additional shards; its existing shards do not change.

        Args:
            folder: folder of the data set.
            plan: the data set to write.
            rank: this process's rank in a distributed run. The first rank writes the plan; the rest follow it.

        Raises:
            DataError: the folder holds another model's data set, one with other settings, or unrelated files; another
                run is writing into it; or it is not writable.
            UsageError: it holds more samples than requested.
        """
        folder = Path(folder).absolute()
        refuse_foreign_files(folder)
        created = create_folder(folder)
        lock = FolderLock(folder, rank)
        try:
            if lock.acquire():
                manifest = siblings_manifest(folder, plan)
            else:
                remove_temporary_files(folder)
                manifest = agreed_manifest(folder, plan)
            lock.admit_siblings()
            return cls(folder, manifest, lock, alone=rank is None or rank.alone)
        except BaseException:
            lock.release()
            remove_empty(created)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the folder lock; written shards are kept."""
        self._closed = True
        self._lock.release()

    def pending(self) -> list[ShardPlan]:
        """Return the shards that remain to be written: missing, or truncated in an unfinished run.

        Raises:
            DataError: a shard that was finished earlier is damaged; it is never overwritten automatically.
        """
        missing = [shard for shard in self.manifest.shards if self._inspect(shard) is None]
        self._samples_left = sum(shard.num_samples for shard in missing)
        return [ShardPlan(shard.index, shard.num_samples) for shard in missing]

    @property
    def samples_left(self) -> int:
        """How many samples remained to be written by all ranks at this process's last check."""
        return self._samples_left

    def samples_ahead(self, shard: ShardPlan) -> int:
        """Return how many samples are neither written nor claimed by others, including this process's `shard`."""
        if self._single_process:
            return self._samples_left
        waiting = (
            record.num_samples
            for record in self.manifest.shards
            if not (self._lock.is_claimed(record.file) or (self.folder / record.file).exists())
        )
        return shard.num_samples + sum(waiting)

    def shares(self) -> Iterator[ShardPlan]:
        """Yield the shards that this process is to write, until all shards are written by this or another rank.

        Waits for shards that other ranks have claimed, and takes them over if those ranks die. Write each shard before
        requesting the next.

        Raises:
            DataError: a shard that was finished earlier is damaged; it is never overwritten automatically.
        """
        waiting = self.pending()
        if self._single_process:
            yield from waiting
        while waiting and not self._single_process:
            claimed_by_others = []
            for shard in waiting:
                claim = self._lock.claim(self._record(shard).file)
                if claim is None:
                    claimed_by_others.append(shard)
                    continue
                with claim:
                    if self._inspect(self._record(shard)) is None:
                        yield shard
                    else:
                        self._samples_left -= shard.num_samples
            if len(claimed_by_others) == len(waiting):
                time.sleep(POLL_SECONDS)
            waiting = claimed_by_others

    def await_turn_to_finish(self) -> None:
        """Wait until no other rank is finishing the set; if one has finished it, `is_complete` is true afterwards.

        Raises:
            DataError: the manifest that another rank wrote cannot be read.
        """
        while not self._single_process and self._lock.claim("finish") is None:
            time.sleep(POLL_SECONDS)
        if not self._single_process and (present := read_manifest(self.folder)).state == "complete":
            self.manifest = present
            self._written.clear()  # these shards are part of that manifest

    def shard_seed(self, shard: ShardPlan) -> int:
        """Return the 63-bit seed of a shard, which depends only on the model, settings, seed and index."""
        return self.manifest.settings.shard_seed(shard.index)

    def write(
        self,
        shard: ShardPlan,
        inputs: Inputs,
        labels: torch.Tensor | None,
        outputs: Mapping[str, torch.Tensor] | None,
        *,
        iterations: int | None = None,
    ) -> None:
        """Write one shard atomically.

        Args:
            shard: one of `pending()`.
            inputs: `(shard.num_samples, *spec.shape)`, finite; any device and floating-point type, stored as float32;
                by name if the specification has several inputs.
            labels: `(shard.num_samples,)` classes, or None.
            outputs: the network's outputs by name, each `(shard.num_samples, ...)` and finite, or None.
            iterations: number of iterations that a time budget allowed; None without a budget.

        Raises:
            UsageError: the shard is not in the plan, or the writer is closed.
            DataError: the tensors do not match the plan, or the file cannot be written; no partial file is left.
        """
        self._require_open()
        record = self._record(shard)
        batch = checked_batch(shard, self.manifest.input_spec, inputs, labels, outputs)
        identity = self.manifest.settings.identity(record.index, record.num_samples)
        write_shard(self.folder / record.file, batch, index=record.index, identity=identity, iterations=iterations)
        self._written.add(record.index)
        self._samples_left -= record.num_samples

    def written_inputs(self, batch_size: int = 64) -> Iterator[Inputs]:
        """Yield the inputs of every written shard in order, `(at most batch_size, *shape)`, for whole-set statistics.

        Inputs are read from disk, one shard at a time, so that statistics are the same after any interruption. No batch
        spans two shards.

        Raises:
            DataError: a shard is unreadable.
        """
        for shard in self.manifest.shards:
            if (self.folder / shard.file).is_file():
                yield from split(load_shard(self.folder / shard.file).inputs, batch_size)

    def first_written(self, samples: int) -> Batch | None:
        """Return the first samples of the first shard that is written; None if there is none.

        Raises:
            DataError: the shard is unreadable.
        """
        for shard in self.manifest.shards:
            if (self.folder / shard.file).is_file():
                written = load_shard(self.folder / shard.file)  # without labels, if the network gives none
                batch: Batch = pytree.tree_map_only(Tensor, lambda tensor: tensor[:samples], written)
                return batch
        return None

    @property
    def is_complete(self) -> bool:
        """Whether the set was complete without any shard of this process, so that `finish()` keeps its manifest."""
        return self.manifest.state == "complete" and not self._written

    def finish(
        self,
        divergence: Mapping[str, float] | None = None,
        *,
        versions: Mapping[str, str] | None = None,
        owner: tempfile.TemporaryDirectory[str] | None = None,
    ) -> SyntheticDataset:
        """Check every shard, write the complete manifest, release the folder lock, and open the data set.

        If the set was already complete and nothing was written, the manifest does not change.

        Args:
            divergence: divergence of each layer's statistics, by layer name.
            versions: more versions to record, in addition to those of Python, torch and this package.
            owner: the temporary directory, if `folder` is one; removed when the data set is no longer used.

        Raises:
            UsageError: shards are still pending, or the writer is closed.
            DataError: a shard is damaged or differs from the others, or the manifest cannot be written.
        """
        self._require_open()
        if not self.is_complete:
            inspections = self._inspect_all()
            self.manifest = replace(
                self.manifest,
                state="complete",
                shards=tuple(
                    replace(shard, sha256=found.file_sha256, iterations=found.proof.iterations)
                    for shard, found in zip(self.manifest.shards, inspections, strict=True)
                ),
                versions={**library_versions(), **(versions or {})},
                divergence={name: float(value) for name, value in (divergence or {}).items()},
            )
            write_manifest(self.folder, self.manifest)
        self.close()
        return SyntheticDataset.open(self.folder, owner=owner)

    def _require_open(self) -> None:
        if self._closed:
            raise UsageError(f"The run in {self.folder} is closed. Start it again with DatasetWriter.begin().")

    def _record(self, shard: ShardPlan) -> ShardRecord:
        if not 0 <= shard.index < len(self.manifest.shards):
            raise UsageError(
                f"The plan has {len(self.manifest.shards)} shards, so index {shard.index} is out of range. "
                "Take the shards from pending()."
            )
        record = self.manifest.shards[shard.index]
        if shard.num_samples != record.num_samples:
            raise UsageError(
                f"Shard {shard.index} has {record.num_samples} samples in the plan, not {shard.num_samples}. "
                "Take the shards from pending()."
            )
        return record

    def _inspect(self, shard: ShardRecord) -> ShardContents | None:
        """Return the contents of a shard's file, or None if the shard remains to be written."""
        path = self.folder / shard.file
        if not path.is_file():
            return None
        # A checksum in the manifest means that the shard was finished; later damage is not repaired automatically.
        finished = None if shard.index in self._written else shard.sha256
        try:
            found = inspect_shard(path, finished)
        except DataError:
            if finished is not None:
                raise
            return None
        if found.proof.identity == self.manifest.settings.identity(shard.index, shard.num_samples):
            return found
        if finished is not None:
            raise DataError(
                f"{path} does not belong to the run that {MANIFEST_FILE} describes: one of them has changed. "
                "Restore both from a copy, or choose another output folder."
            )
        return None

    def _inspect_all(self) -> list[ShardContents]:
        inspections = [self._inspect(shard) for shard in self.manifest.shards]
        pending = [shard.file for shard, found in zip(self.manifest.shards, inspections, strict=True) if found is None]
        if pending:
            raise UsageError(
                f"{len(pending)} of {len(inspections)} shards in {self.folder} are not written yet, starting with "
                f"{pending[0]}. Write every shard of pending() before finish()."
            )
        found = [inspection for inspection in inspections if inspection is not None]
        check_alike(self.manifest.shards, found)
        return found
