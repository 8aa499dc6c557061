"""One shard file: exact round trip, the same bytes every time, and proof against damage."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import safetensors.torch
import torch
from torch.utils import _pytree as pytree

from dfq_plugins.data import shards
from dfq_plugins.data.manifest import GeneratorRecord, Manifest, ShardRecord, shard_file
from dfq_plugins.data.shards import METADATA_KEY, ShardCache, inspect_shard, load_shard, write_shard
from dfq_plugins.errors import DataError
from dfq_plugins.types import Batch, InputSpec

if TYPE_CHECKING:
    from pathlib import Path

IDENTITY = "12" * 32


def make_batch(samples: int = 4, seed: int = 0) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    return Batch(
        torch.randn(samples, 2, 3, generator=rng),
        torch.randint(0, 5, (samples,), generator=rng),
        {"aux.0": torch.randn(samples, 2, 2, generator=rng), "out": torch.randn(samples, 5, generator=rng)},
    )


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / shard_file(1)
    write_shard(path, make_batch(), index=1, identity=IDENTITY)
    return path


def checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_round_trip_is_exact(shard: Path) -> None:
    read, batch = load_shard(shard, checksum(shard)), make_batch()
    assert read.outputs is not None
    assert list(read.outputs) == list(batch.outputs or {})
    for found, written in zip(pytree.tree_leaves(read), pytree.tree_leaves(batch), strict=True):
        assert found.dtype == written.dtype
        assert torch.equal(found, written)


def test_a_shard_of_the_first_version_is_read(tmp_path: Path) -> None:
    """Version 1 stored the class logits under their own name."""
    path, batch = tmp_path / shard_file(1), make_batch()
    logits = torch.rand(4, 5)
    proof = {"index": 1, "num_samples": 4, "identity": IDENTITY, "sha256": "00" * 32}
    metadata = {METADATA_KEY: json.dumps(proof)}
    safetensors.torch.save_file({"inputs": batch.inputs, "logits": logits}, path, metadata)
    read = load_shard(path)
    assert read.outputs is not None
    assert list(read.outputs) == ["output"]
    assert torch.equal(read.outputs["output"], logits)


def test_absent_labels_and_outputs_stay_absent(tmp_path: Path) -> None:
    path = tmp_path / shard_file(0)
    write_shard(path, Batch(make_batch().inputs), index=0, identity=IDENTITY)
    assert set(safetensors.torch.load_file(path)) == {"inputs"}
    assert load_shard(path)[1:] == (None, None)


def test_shard_states_what_it_is(shard: Path) -> None:
    found = inspect_shard(shard)
    assert (found.proof.index, found.proof.num_samples, found.proof.identity) == (1, 4, IDENTITY)
    assert found.file_sha256 == checksum(shard)
    assert found.rows == {"inputs": (2, 3), "labels": (), "outputs.aux.0": (2, 2), "outputs.out": (5,)}
    with safetensors.safe_open(shard, framework="pt") as file:
        assert json.loads(file.metadata()[METADATA_KEY])["sha256"] == found.proof.sha256


@pytest.mark.slow
def test_bytes_are_the_same_in_every_process(shard: Path, tmp_path: Path) -> None:
    # safetensors writes several metadata keys in an order that changes from process to process.
    script = f"""
import torch
from torch.utils import _pytree as pytree
from pathlib import Path
from dfq_plugins.data.shards import write_shard
from dfq_plugins.types import Batch
rng = torch.Generator().manual_seed(0)
batch = Batch(torch.randn(4, 2, 3, generator=rng), torch.randint(0, 5, (4,), generator=rng),
              {{"aux.0": torch.randn(4, 2, 2, generator=rng), "out": torch.randn(4, 5, generator=rng)}})
write_shard(Path({str(tmp_path / "other")!r}), batch, index=1, identity={IDENTITY!r})
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    assert (tmp_path / "other").read_bytes() == shard.read_bytes()


def test_writing_leaves_no_other_file(shard: Path) -> None:
    assert [path.name for path in shard.parent.iterdir()] == [shard.name]


@pytest.mark.parametrize("kept", [0, 7, 40, -1])
def test_truncated_shard_is_refused_with_both_checksums(shard: Path, kept: int) -> None:
    expected = checksum(shard)
    shard.write_bytes(shard.read_bytes()[:kept])
    with pytest.raises(DataError) as caught:
        load_shard(shard, expected)
    assert f"{shard} is damaged: its SHA-256 should be {expected}, but is {checksum(shard)}." in str(caught.value)
    assert "Restore the file from a copy, or delete it and run the same synthesis into" in str(caught.value)
    with pytest.raises(DataError, match="is damaged: it is not a readable shard"):
        inspect_shard(shard)


def test_changed_value_is_found_without_a_manifest(shard: Path) -> None:
    data = bytearray(shard.read_bytes())
    data[-3] ^= 1
    shard.write_bytes(data)
    proof = json.loads(safetensors.safe_open(shard, framework="pt").metadata()[METADATA_KEY])
    with pytest.raises(DataError, match=f"its SHA-256 should be {proof['sha256']}, but is [0-9a-f]{{64}}"):
        inspect_shard(shard)


def test_safetensors_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / shard_file(0)
    safetensors.torch.save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(DataError, match="is damaged: it is not a readable shard"):
        inspect_shard(path)


def test_shard_with_other_count_than_it_claims_is_refused(tmp_path: Path) -> None:
    path = tmp_path / shard_file(0)
    claim = json.dumps({"index": 0, "num_samples": 3, "identity": IDENTITY, "sha256": ""})
    safetensors.torch.save_file({"inputs": torch.zeros(2, 3)}, path, {METADATA_KEY: claim})
    with pytest.raises(DataError, match="is damaged: it does not hold the 3 inputs that it declares"):
        inspect_shard(path)


def test_missing_and_unreadable_shards_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=re.escape(f"The shard {tmp_path / 'a'} is missing. Restore the file")):
        load_shard(tmp_path / "a")
    with pytest.raises(DataError, match=re.escape(f"The shard {tmp_path} cannot be read (Is a directory).")):
        load_shard(tmp_path)


def make_cache(folder: Path, count: int, limit: int | None = None) -> ShardCache:
    records = tuple(ShardRecord(index, 4, shard_file(index)) for index in range(count))
    manifest = manifest_of(records)
    for record in records:
        identity = manifest.settings.identity(record.index, 4)
        write_shard(folder / record.file, make_batch(seed=record.index), index=record.index, identity=identity)
    checked = tuple(replace(record, sha256=checksum(folder / record.file)) for record in records)
    return ShardCache(folder, replace(manifest, shards=checked), limit)


def manifest_of(records: tuple[ShardRecord, ...]) -> Manifest:
    generator, samples = GeneratorRecord("noise", "dfq-noise", "1.0"), sum(record.num_samples for record in records)
    return Manifest("incomplete", "ab" * 32, generator, 0, InputSpec((2, 3)), "none", samples, records, {})


def test_cache_is_bounded_and_keeps_what_was_used_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum(tensor.nbytes for tensor in pytree.tree_leaves(make_batch()))
    cache = make_cache(tmp_path, 6, limit=2 * size)
    loaded = []
    read = shards._read
    monkeypatch.setattr(shards, "_read", lambda path, sha256: loaded.append(path.name) or read(path, sha256))
    for index in (0, 1, 0, 2, 0, 1, 3, 4, 5):
        assert torch.equal(cache[index].inputs, make_batch(seed=index).inputs)
        assert cache.loaded_bytes <= 2 * size
    assert [int(name[6:11]) for name in loaded] == [0, 1, 2, 1, 3, 4, 5]


def test_cache_keeps_the_latest_shard_however_large(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, 2, limit=0)
    assert cache[1] is cache[1]
    assert cache[0] is cache[0]


def test_cache_checks_each_shard_once_and_again_after_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make_cache(tmp_path, 2, limit=0)
    checked, read = [], shards._read
    monkeypatch.setattr(shards, "_read", lambda path, sha256: checked.append(sha256) or read(path, sha256))
    _ = cache[0], cache[1], cache[0], cache[1]
    assert [sha256 is not None for sha256 in checked] == [True, True, False, False]
    write_shard(tmp_path / shard_file(0), make_batch(seed=9), index=0, identity=IDENTITY)
    for read_again in (lambda: cache[0], lambda: cache.check(0)):
        with pytest.raises(DataError, match=r"shard-00000\.safetensors is damaged"):
            read_again()


def test_shard_that_does_not_fit_the_manifest_is_refused(tmp_path: Path) -> None:
    path = tmp_path / shard_file(0)
    manifest = manifest_of((ShardRecord(0, 5, path.name),))
    write_shard(path, make_batch(), index=0, identity=manifest.settings.identity(0, 5))
    cache = ShardCache(tmp_path, manifest)
    with pytest.raises(DataError, match=r"does not match its manifest: .* shape \(4, 2, 3\), not \(5, 2, 3\)"):
        cache[0]
