"""Reading a data set: as a torch Dataset, in the calibration forms, lazily, and with clear errors."""

from __future__ import annotations

import gc
import hashlib
import json
import pickle
import random
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.utils.data import DataLoader, default_collate

from dfq_plugins.data import shards
from dfq_plugins.data.dataset import SyntheticDataset, collate
from dfq_plugins.data.manifest import MANIFEST_FILE, GeneratorRecord, read_manifest, shard_file, write_manifest
from dfq_plugins.data.plan import DatasetPlan
from dfq_plugins.data.shards import load_shard, write_shard
from dfq_plugins.data.writer import DatasetWriter
from dfq_plugins.errors import DataError, UsageError
from dfq_plugins.types import Batch, InputSpec
from places import DOCS

if TYPE_CHECKING:
    from collections.abc import Callable

SPEC = InputSpec((3, 8, 8), num_classes=4)
RNG = torch.Generator().manual_seed(0)
INPUTS = torch.randn(11, 3, 8, 8, generator=RNG)
LABELS = torch.arange(11) % 4
LOGITS = torch.randn(11, 4, generator=RNG)


def write(folder: Path, *, bare: bool = False, owner: tempfile.TemporaryDirectory | None = None) -> SyntheticDataset:
    generator = GeneratorRecord("noise<b>", "dfq-noise", "1.0")
    with DatasetWriter.begin(folder, DatasetPlan("ab" * 32, generator, 5, SPEC, 11, 4, "teacher")) as writer:
        for shard in writer.pending():
            rows = slice(shard.index * 4, shard.index * 4 + shard.num_samples)
            labels, outputs = (None, None) if bare else (LABELS[rows], {"output": LOGITS[rows]})
            writer.write(shard, INPUTS[rows], labels, outputs)
        return writer.finish({"norm1": 0.5}, owner=owner)


@pytest.fixture
def data(tmp_path: Path) -> SyntheticDataset:
    return write(tmp_path)


def test_samples_by_index(data: SyntheticDataset) -> None:
    assert len(data) == 11
    assert data.spec == SPEC
    for index in (0, 3, 4, 10, -1, -11, np.int64(7)):
        sample = data[index]
        assert isinstance(sample, Batch)
        assert torch.equal(sample.inputs, INPUTS[index])
        assert sample.labels == LABELS[index]
        assert torch.equal(sample.outputs["output"], LOGITS[index])


@pytest.mark.parametrize("index", [11, -12])
def test_index_outside_is_an_index_error(data: SyntheticDataset, index: int) -> None:
    with pytest.raises(IndexError, match=f"The data set has 11 samples, so index {index} is out of range"):
        data[index]


def test_iteration_ends(data: SyntheticDataset) -> None:
    assert len([*data]) == 11


def test_changing_what_was_handed_out_leaves_the_data_set_as_it_was(data: SyntheticDataset) -> None:
    data[0].inputs.zero_()
    next(data.batches(2)).zero_()
    next(iter(data.loader(2))).inputs.zero_()
    data.inputs(2).zero_()
    assert torch.equal(data.inputs(), INPUTS)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 11, 64])
def test_batches_and_loader_give_every_sample_in_order(data: SyntheticDataset, batch_size: int) -> None:
    batches = [*data.batches(batch_size)]
    assert {len(batch) for batch in batches[:-1]} <= {batch_size}
    assert torch.equal(torch.cat(batches), INPUTS)
    loaded = [*data.loader(batch_size)]
    assert torch.equal(torch.cat([batch.inputs for batch in loaded]), INPUTS)
    assert torch.equal(torch.cat([batch.labels for batch in loaded]), LABELS)
    assert torch.equal(torch.cat([batch.outputs["output"] for batch in loaded]), LOGITS)


def test_shuffled_loader_follows_its_seed_and_changes_with_each_pass(data: SyntheticDataset) -> None:
    def order(loader: DataLoader) -> list[float]:
        return [float(value) for batch in loader for value in batch.inputs[:, 0, 0, 0]]

    loader = data.loader(3, shuffle=True, seed=1)
    first, second = order(loader), order(loader)
    assert sorted(first) == sorted(second) == sorted(INPUTS[:, 0, 0, 0].tolist())
    assert len({tuple(first), tuple(second), tuple(order(data.loader(3, shuffle=True, seed=2)))}) == 3
    assert first == order(data.loader(3, shuffle=True, seed=1))
    assert order(data.loader(3, shuffle=True)) == order(data.loader(3, shuffle=True, seed=5))


def test_loader_can_drop_a_small_last_batch(data: SyntheticDataset) -> None:
    assert [len(batch.inputs) for batch in data.loader(4, drop_last=True)] == [4, 4]


def test_global_generators_are_untouched(data: SyntheticDataset, tiny_network: nn.Module) -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002 - the global state is what is tested
    [*data.loader(4), *data.loader(4, shuffle=True), *data.loader(4, shuffle=True, seed=-3)]
    data.forward_loop(tiny_network)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()  # noqa: NPY002


def test_default_collate_works(data: SyntheticDataset) -> None:
    loaded = [*DataLoader(data, batch_size=4)]
    assert all(isinstance(batch, Batch) for batch in loaded)
    assert torch.equal(torch.cat([batch.outputs["output"] for batch in loaded]), LOGITS)
    assert torch.equal(default_collate([data[0], data[7]]).inputs, INPUTS[[0, 7]])


@pytest.mark.slow
def test_worker_processes_read_for_themselves(data: SyntheticDataset) -> None:
    data.inputs()
    loader = DataLoader(data, batch_size=6, num_workers=1, multiprocessing_context="spawn")
    assert torch.equal(torch.cat([batch.inputs for batch in loader]), INPUTS)


def test_pickle_holds_no_tensor(data: SyntheticDataset) -> None:
    data.inputs()
    pickled = pickle.dumps(data)
    assert INPUTS[0].numpy().tobytes()[:64] not in pickled
    assert torch.equal(pickle.loads(pickled).inputs(), INPUTS)  # noqa: S301 - just pickled here


def test_data_set_without_labels_and_outputs(tmp_path: Path) -> None:
    data = write(tmp_path, bare=True)
    assert data[3][1:] == (None, None)
    assert next(iter(data.loader(4)))[1:] == (None, None)
    loaded = [*DataLoader(data, batch_size=4, collate_fn=collate)]
    assert torch.equal(torch.cat([batch.inputs for batch in loaded]), INPUTS)


def test_first_inputs(data: SyntheticDataset) -> None:
    for limit, count in ((1, 1), (5, 5), (100, 11), (None, 11)):
        assert torch.equal(data.inputs(limit), INPUTS[:count])
    with pytest.raises(UsageError, match="limit must be at least 1, got 0"):
        data.inputs(0)


@pytest.mark.parametrize("method", ["batches", "loader", "calibration_data_reader", "representative_dataset"])
def test_batch_size_must_be_positive(data: SyntheticDataset, method: str) -> None:
    with pytest.raises(UsageError, match="batch_size must be at least 1, got 0"):
        getattr(data, method)(batch_size=0)


class Recorder(nn.Module):
    """Notes what a forward loop does to it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []
        self.modes: set[tuple[bool, bool, bool]] = set()
        self.maximum = nn.Buffer(torch.zeros(()))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.seen.append(inputs)
        self.modes.add((self.training, torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
        self.maximum = inputs.max()
        return inputs


@pytest.mark.parametrize("training", [True, False])
def test_forward_loop_feeds_every_sample_without_gradients(data: SyntheticDataset, training: bool) -> None:
    model = Recorder().train(training)
    data.forward_loop(model, batch_size=4)
    assert torch.equal(torch.cat(model.seen), INPUTS)
    assert model.modes == {(training, False, False)}
    assert model.training is training
    assert torch.is_grad_enabled()


def test_forward_loop_moves_batches_to_the_device_of_the_model(data: SyntheticDataset) -> None:
    model = Recorder().to("meta")
    data.forward_loop(model)
    assert model.seen[0].device.type == "meta"


def test_forward_loop_restores_gradients_after_an_exception(data: SyntheticDataset) -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        data.forward_loop(nn.Sequential(nn.Flatten(), nn.Linear(7, 2)))
    assert torch.is_grad_enabled()


def test_calibration_data_reader_follows_onnxruntimes_protocol(data: SyntheticDataset) -> None:
    reader = data.calibration_data_reader("pixels", batch_size=4)
    assert len(reader) == 3
    for _ in range(2):
        batches = [*reader]
        assert reader.get_next() is None
        assert all(batch["pixels"].dtype == np.float32 for batch in batches)
        assert np.array_equal(np.concatenate([batch["pixels"] for batch in batches]), INPUTS.numpy())
        reader.rewind()
        assert np.array_equal(reader.get_first()["pixels"], INPUTS[:4].numpy())  # and stays where it is
    reader.set_range(1, 2)
    assert np.array_equal(reader.get_next()["pixels"], INPUTS[4:8].numpy())
    assert reader.get_next() is None
    assert [*data.calibration_data_reader().get_next()] == ["input"]


def test_onnxruntime_takes_the_reader_for_its_own(data: SyntheticDataset) -> None:
    calibrate = pytest.importorskip("onnxruntime.quantization.calibrate", reason="onnxruntime is not installed")
    assert isinstance(data.calibration_data_reader(), calibrate.CalibrationDataReader)


def test_representative_dataset_starts_anew_with_each_call(data: SyntheticDataset) -> None:
    representative = data.representative_dataset(batch_size=5)
    for _ in range(2):
        batches = [batch for [batch] in representative()]
        assert [len(batch) for batch in batches] == [5, 5, 1]
        assert np.array_equal(np.concatenate(batches), INPUTS.numpy())


def test_opening_reads_no_shard_and_reading_keeps_few(data: SyntheticDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum(tensor[:4].nbytes for tensor in (INPUTS, LABELS, LOGITS))
    monkeypatch.setattr(shards, "CACHE_BYTES", size)
    (data.folder / shard_file(2)).unlink()
    reopened = SyntheticDataset.open(data.folder)
    for index in (0, 5, 1, 6):
        assert torch.equal(reopened[index].inputs, INPUTS[index])
        assert reopened._shards.loaded_bytes <= size
    with pytest.raises(DataError, match=r"The shard .*shard-00002\.safetensors is missing"):
        reopened[8]


def test_shuffled_batch_loads_each_shard_once(data: SyntheticDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "CACHE_BYTES", 0)
    reopened, loaded, read = SyntheticDataset.open(data.folder), [], shards._read
    monkeypatch.setattr(shards, "_read", lambda path, sha256: loaded.append(path.name) or read(path, sha256))
    samples = reopened.__getitems__([9, 0, 5, 10, 1, 6])
    assert torch.equal(collate(samples).inputs, INPUTS[[9, 0, 5, 10, 1, 6]])
    assert len(loaded) == 3


@pytest.mark.parametrize("damage", ["truncate", "tamper"])
def test_damaged_shard_is_named_with_both_checksums(data: SyntheticDataset, damage: str) -> None:
    path = data.folder / shard_file(1)
    content = path.read_bytes()
    path.write_bytes(content[:-5] if damage == "truncate" else content[:-1] + bytes([content[-1] ^ 1]))
    expected = data.manifest.shards[1].sha256
    for read in (data.verify, data.inputs, lambda: data[4]):
        with pytest.raises(DataError, match=rf"{path} is damaged: its SHA-256 should be {expected}, but is [0-9a-f]"):
            read()
    assert torch.equal(data[0].inputs, INPUTS[0])


def test_verify_finds_damage_after_a_shard_was_read(data: SyntheticDataset) -> None:
    data.inputs()
    data.verify()
    (data.folder / shard_file(0)).unlink()
    with pytest.raises(DataError, match=r"The shard .*shard-00000\.safetensors is missing\. Restore the file"):
        data.verify()


def test_unfinished_run_says_how_to_resume(data: SyntheticDataset) -> None:
    write_manifest(data.folder, replace(read_manifest(data.folder), state="incomplete"))
    (data.folder / shard_file(2)).unlink()
    with pytest.raises(DataError) as caught:
        SyntheticDataset.open(data.folder)
    assert str(caught.value) == (
        f"{data.folder} holds an unfinished run: 2 of 3 shards are there. Resume it with the command that started it "
        f"(dfq synthesize ... --output {data.folder}); it makes only the missing shards."
    )


def test_folder_without_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not a data set: it has no manifest\.json\. Give the folder of a synth"):
        SyntheticDataset.open(tmp_path / "nothing")


def test_future_format_is_refused(data: SyntheticDataset) -> None:
    path = data.folder / MANIFEST_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 3}))
    with pytest.raises(DataError, match="Install a newer dfq-plugins"):
        SyntheticDataset.open(data.folder)


def test_relative_folder_survives_a_change_of_directory(
    data: SyntheticDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data.folder.parent)
    reopened = SyntheticDataset.open(data.folder.name)
    monkeypatch.chdir("/")
    assert torch.equal(reopened.inputs(1), INPUTS[:1])


def test_temporary_folder_lives_as_long_as_the_data_set() -> None:
    owner = tempfile.TemporaryDirectory()
    folder = Path(owner.name)
    data = write(folder, owner=owner)
    del owner
    gc.collect()
    batches = data.batches(4)
    del data
    gc.collect()
    assert torch.equal(torch.cat([*batches]), INPUTS)
    del batches
    gc.collect()
    assert not folder.exists()


def test_short_summary(data: SyntheticDataset) -> None:
    assert repr(data) == (
        "SyntheticDataset(num_samples=11, shape=(3, 8, 8), generator='noise<b>', labels='teacher', seed=5, shards=3, "
        f"folder='{data.folder}')"
    )
    page = data._repr_html_()
    assert "<th>num_samples</th><td>11</td>" in page
    assert "noise&lt;b&gt;" in page
    assert "noise<b>" not in page


def test_written_example_of_the_manifest_is_valid(tmp_path: Path) -> None:
    text = (DOCS / "file-formats.md").read_text()
    example = text.split("```json\n")[1].split("```")[0]
    (tmp_path / MANIFEST_FILE).write_text(example)
    manifest = read_manifest(tmp_path)
    write_manifest(tmp_path, manifest)
    assert (tmp_path / MANIFEST_FILE).read_text() == example


def rewritten(data: SyntheticDataset, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the tensors of the first shard, and leave its metadata."""
    path = data.folder / data.manifest.shards[0].file
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    tensors = safetensors.torch.load(content)
    change(tensors)
    path.write_bytes(safetensors.torch.save(tensors, header["__metadata__"]))


def test_values_that_change_on_disk_after_the_first_read_are_noticed(data: SyntheticDataset) -> None:
    first = data[0].inputs.clone()
    data._shards._loaded.clear()
    assert torch.equal(data[0].inputs, first)
    rewritten(data, lambda tensors: tensors["inputs"].add_(1))
    data._shards._loaded.clear()
    with pytest.raises(DataError, match="is damaged: its SHA-256 should be"):
        data[0]


def test_a_shard_of_another_run_is_noticed_also_with_its_checksum_in_the_manifest(data: SyntheticDataset) -> None:
    path = data.folder / data.manifest.shards[0].file
    batch = load_shard(path)
    write_shard(path, batch, index=0, identity="0" * 64)
    shards = (replace(data.manifest.shards[0], sha256=hashlib.sha256(path.read_bytes()).hexdigest()),)
    changed = replace(data.manifest, shards=(*shards, *data.manifest.shards[1:]))
    write_manifest(data.folder, changed)
    for read in (lambda opened: opened[0], lambda opened: opened.verify()):
        with pytest.raises(DataError, match="does not belong to this data set: it is shard 0 of a run with other"):
            read(SyntheticDataset.open(data.folder))
