"""Writes a data set shard by shard, so that a run can stop at any moment and go on later to the same bytes."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from dfq_plugins.data.dataset import SyntheticDataset
from dfq_plugins.data.manifest import MANIFEST_FILE, read_manifest, write_manifest
from dfq_plugins.data.plan import ShardPlan
from dfq_plugins.data.resume import agreed_manifest, refuse_foreign_files, siblings_manifest
from dfq_plugins.data.sample_checks import checked_batch
from dfq_plugins.data.shards import check_alike, inspect_shard, load_shard, write_shard
from dfq_plugins.errors import DataError, UsageError
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


class DatasetWriter:
    """One run that writes into one folder, alone or as one of its ranks: begin it, write its shares, finish it.

    A context manager that gives the folder back at the end, also after an exception. What was written stays::

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
        self._alone = alone
        self._written: set[int] = set()
        self._left = manifest.num_samples
        self._closed = False

    @classmethod
    def begin(cls, folder: Path | str, plan: DatasetPlan, rank: Rank | None = None) -> Self:
        """Take the folder for this run: a new one, one to resume, or a finished set to extend.

        A folder with an unfinished run of the same settings goes on where that stopped. A set with fewer samples than
        `plan` asks for gets new shards after its own, which keep every byte.

        Args:
            folder: where the data set lies.
            plan: what it is to hold.
            rank: which process of a distributed run this is. The first to come writes the plan, the others go by it.

        Raises:
            DataError: the folder holds another model's data set, one of other settings, or files of something else;
                another run is writing into it; or it cannot be written.
            UsageError: it holds more samples than are asked for.
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
        """Give the folder back to other runs; the shards that are written stay."""
        self._closed = True
        self._lock.release()

    def pending(self) -> list[ShardPlan]:
        """Return the shards that are still to be written: missing, or cut short in an unfinished run.

        Raises:
            DataError: a shard that was finished before is damaged; it is not overwritten unasked.
        """
        missing = [shard for shard in self.manifest.shards if self._examine(shard) is None]
        self._left = sum(shard.num_samples for shard in missing)
        return [ShardPlan(shard.index, shard.num_samples) for shard in missing]

    @property
    def samples_left(self) -> int:
        """How many samples were still to be written when this process last looked, on all ranks together."""
        return self._left

    def samples_ahead(self, shard: ShardPlan) -> int:
        """Return how many samples nobody has written or claimed yet, with those of `shard`, which this process has."""
        if self._alone:
            return self._left
        waiting = (
            record.num_samples
            for record in self.manifest.shards
            if not (self._lock.is_claimed(record.file) or (self.folder / record.file).exists())
        )
        return shard.num_samples + sum(waiting)

    def shares(self) -> Iterator[ShardPlan]:
        """Yield the shards that this process is to write, until every shard is written, by it or by another rank.

        A shard that another rank has claimed is waited for, and falls to this one if that rank dies. Write each before
        asking for the next.

        Raises:
            DataError: a shard that was finished before is damaged; it is not overwritten unasked.
        """
        waiting = self.pending()
        if self._alone:
            yield from waiting
        while waiting and not self._alone:
            claimed_by_others = []
            for shard in waiting:
                claim = self._lock.claim(self._record(shard).file)
                if claim is None:
                    claimed_by_others.append(shard)
                    continue
                with claim:
                    if self._examine(self._record(shard)) is None:
                        yield shard
                    else:
                        self._left -= shard.num_samples
            if len(claimed_by_others) == len(waiting):
                time.sleep(POLL_SECONDS)
            waiting = claimed_by_others

    def await_turn_to_finish(self) -> None:
        """Wait until no other rank is finishing the set; where one has done it, `is_complete` is true afterwards.

        Raises:
            DataError: the manifest that another rank wrote cannot be read.
        """
        while not self._alone and self._lock.claim("finish") is None:
            time.sleep(POLL_SECONDS)
        if not self._alone and (present := read_manifest(self.folder)).state == "complete":
            self.manifest = present
            self._written.clear()  # all of it is in that manifest

    def shard_seed(self, shard: ShardPlan) -> int:
        """Return the 63-bit seed of a shard, which depends on model, settings, seed and index alone."""
        return self.manifest.settings.shard_seed(shard.index)

    def write(
        self,
        shard: ShardPlan,
        inputs: torch.Tensor,
        labels: torch.Tensor | None,
        logits: torch.Tensor | None,
        *,
        iterations: int | None = None,
    ) -> None:
        """Write one shard atomically.

        Args:
            shard: one of `pending()`.
            inputs: `(shard.num_samples, *spec.shape)`, finite; any device and floating type, kept as float32.
            labels: `(shard.num_samples,)` classes, or None.
            logits: `(shard.num_samples, classes)`, finite, or None where the network gives no class logits.
            iterations: how many iterations a budget of time came to; None without one.

        Raises:
            UsageError: the shard is not in the plan, or the writer is closed.
            DataError: the tensors do not fit the plan, or the file cannot be written; nothing is left of it.
        """
        self._require_open()
        record = self._record(shard)
        batch = checked_batch(shard, self.manifest.input_spec, inputs, labels, logits)
        identity = self.manifest.settings.identity(record.index, record.num_samples)
        write_shard(self.folder / record.file, batch, index=record.index, identity=identity, iterations=iterations)
        self._written.add(record.index)
        self._left -= record.num_samples

    def written_inputs(self, batch_size: int = 64) -> Iterator[torch.Tensor]:
        """Yield the inputs of every written shard in order, `(at most batch_size, *shape)`, for whole-set statistics.

        Reads them from disk, one shard at a time, so that what is computed from them is the same after any
        interruption. No batch crosses from one shard to the next.

        Raises:
            DataError: a shard is unreadable.
        """
        for shard in self.manifest.shards:
            if (self.folder / shard.file).is_file():
                inputs = load_shard(self.folder / shard.file).inputs
                yield from (inputs[start : start + batch_size] for start in range(0, len(inputs), batch_size))

    @property
    def is_complete(self) -> bool:
        """Whether the folder holds the complete set without this process, so that `finish()` keeps its manifest."""
        return self.manifest.state == "complete" and not self._written

    def finish(
        self,
        divergence: Mapping[str, float] | None = None,
        *,
        versions: Mapping[str, str] | None = None,
        owner: tempfile.TemporaryDirectory[str] | None = None,
    ) -> SyntheticDataset:
        """Check every shard, write the complete manifest, give the folder back, and open the data set.

        Where the set was complete already and nothing was written, the manifest stays as it is.

        Args:
            divergence: divergence of each layer's statistics, by layer name.
            versions: more versions to record, besides those of Python, torch and this package.
            owner: the temporary directory that `folder` is, removed when the data set is no longer used.

        Raises:
            UsageError: shards are still pending, or the writer is closed.
            DataError: a shard is damaged or unlike the others, or the manifest cannot be written.
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
            raise UsageError(f"The run in {self.folder} is closed. Begin it again with DatasetWriter.begin().")

    def _record(self, shard: ShardPlan) -> ShardRecord:
        if not 0 <= shard.index < len(self.manifest.shards):
            raise UsageError(f"The plan has {len(self.manifest.shards)} shards, so none of index {shard.index}.")
        record = self.manifest.shards[shard.index]
        if shard.num_samples != record.num_samples:
            raise UsageError(
                f"Shard {shard.index} holds {record.num_samples} samples in the plan, not {shard.num_samples}. "
                "Take the shards from pending()."
            )
        return record

    def _examine(self, shard: ShardRecord) -> ShardContents | None:
        """Return what is in a shard's file, or None where it is still to be written."""
        path = self.folder / shard.file
        if not path.is_file():
            return None
        # A checksum in the manifest says that the shard was finished: damage since then is not repaired unasked.
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
                f"{path} is not of the run that {MANIFEST_FILE} describes: one of the two was changed. "
                "Restore both from a copy, or choose another output folder."
            )
        return None

    def _inspect_all(self) -> list[ShardContents]:
        inspections = [self._examine(shard) for shard in self.manifest.shards]
        pending = [shard.file for shard, found in zip(self.manifest.shards, inspections, strict=True) if found is None]
        if pending:
            raise UsageError(
                f"{len(pending)} of {len(inspections)} shards in {self.folder} are not written yet, from {pending[0]} "
                "on. Write every shard of pending() before finish()."
            )
        found = [inspection for inspection in inspections if inspection is not None]
        check_alike(self.manifest.shards, found)
        return found
