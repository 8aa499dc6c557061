"""Writing a data set: exact counts, resume to the same bytes, extension, and refusal of everything that would mix."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dfq_plugins.data.dataset import SyntheticDataset
from dfq_plugins.data.manifest import MANIFEST_FILE, GeneratorRecord, shard_file
from dfq_plugins.data.plan import DatasetPlan, ShardPlan
from dfq_plugins.data.writer import DatasetWriter
from dfq_plugins.errors import DataError, UsageError
from dfq_plugins.storage.files import LOCK_FILE
from dfq_plugins.types import InputSpec

SPEC = InputSpec((2, 4), value_range=(0, 1), num_classes=3)
DIVERGENCE = {"norm1": 0.5, "norm2": 0.25}


def make_plan(num_samples: int = 10, **changes: object) -> DatasetPlan:
    generator = GeneratorRecord("noise", "dfq-noise", "1.0", {"scale": 1, "terms": (1.0, 2.0)})
    return replace(DatasetPlan("ab" * 32, generator, 3, SPEC, num_samples, 4, "conditional"), **changes)


def samples(writer: DatasetWriter, shard: ShardPlan) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    rng = torch.Generator().manual_seed(writer.shard_seed(shard))
    inputs = torch.rand(shard.num_samples, 2, 4, generator=rng)
    return inputs, inputs.flatten(1).argmax(1) % 3, {"output": inputs.sum(2).repeat(1, 2)[:, :3]}


class StoppedError(Exception):
    """What interrupts a run in these tests."""


def run(folder: Path, plan: DatasetPlan | None = None, stop_after: int | None = None) -> SyntheticDataset:
    with DatasetWriter.begin(folder, plan or make_plan()) as writer:
        for count, shard in enumerate(writer.pending()):
            if count == stop_after:
                raise StoppedError
            writer.write(shard, *samples(writer, shard))
        return writer.finish(DIVERGENCE)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_finished_folder_holds_the_manifest_and_the_shards_and_nothing_else(tmp_path: Path) -> None:
    data = run(tmp_path / "deep" / "out")
    assert sorted(contents(data.folder)) == [MANIFEST_FILE, *(shard_file(index) for index in range(3))]
    assert [shard.num_samples for shard in data.manifest.shards] == [4, 4, 2]
    assert len(data) == 10
    assert data.manifest.state == "complete"
    assert data.manifest.divergence == DIVERGENCE
    assert data.manifest.labels == "conditional"
    data.verify()


def test_plan_is_on_disk_from_the_start(tmp_path: Path) -> None:
    with DatasetWriter.begin(tmp_path, make_plan()) as writer:
        manifest = json.loads((tmp_path / MANIFEST_FILE).read_bytes())
        assert manifest["state"] == "incomplete"
        assert [shard["sha256"] for shard in manifest["shards"]] == [None] * 3
        assert [(shard.index, shard.num_samples) for shard in writer.pending()] == [(0, 4), (1, 4), (2, 2)]


@pytest.mark.parametrize("written", [0, 1, 2, 3])
def test_interrupted_run_goes_on_to_the_same_bytes(tmp_path: Path, written: int) -> None:
    with DatasetWriter.begin(tmp_path / "b", make_plan()) as writer:
        for shard in writer.pending()[:written]:
            writer.write(shard, *samples(writer, shard))
    assert sorted(contents(tmp_path / "b")) == [MANIFEST_FILE, *(shard_file(index) for index in range(written))]
    run(tmp_path / "b")
    assert contents(run(tmp_path / "a").folder) == contents(tmp_path / "b")


def test_exception_frees_the_folder_and_keeps_the_finished_shards(tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        run(tmp_path, stop_after=2)
    with DatasetWriter.begin(tmp_path, make_plan()) as writer:
        assert [shard.index for shard in writer.pending()] == [2]


KILLED_RUN = """
import os, signal, sys
from pathlib import Path
import torch
from dfq_plugins.data.manifest import GeneratorRecord
from dfq_plugins.data.plan import DatasetPlan
from dfq_plugins.types import InputSpec
from dfq_plugins.data.writer import DatasetWriter

folder, syncs = Path(sys.argv[1]), iter(range(10**6))
sync = os.fsync
def killing_sync(descriptor):
    if next(syncs) == int(sys.argv[2]):
        os.truncate(descriptor, 100)
        os.kill(os.getpid(), signal.SIGKILL)
    sync(descriptor)
os.fsync = killing_sync
spec = InputSpec((2, 4), value_range=(0, 1), num_classes=3)
generator = GeneratorRecord("noise", "dfq-noise", "1.0", {"scale": 1, "terms": (1.0, 2.0)})
writer = DatasetWriter.begin(folder, DatasetPlan("ab" * 32, generator, 3, spec, 10, 4, "conditional"))
for shard in writer.pending():
    inputs = torch.rand(shard.num_samples, 2, 4, generator=torch.Generator().manual_seed(writer.shard_seed(shard)))
    logits = inputs.sum(2).repeat(1, 2)[:, :3]
    writer.write(shard, inputs, inputs.flatten(1).argmax(1) % 3, {"output": logits})
"""


# Each file is synced once and its folder once: 0 the plan, 2 the first shard, 4 the second.
@pytest.mark.slow
@pytest.mark.parametrize(("sync", "finished"), [(0, 0), (4, 1)])
def test_run_killed_in_the_middle_of_a_write_goes_on_to_the_same_bytes(
    tmp_path: Path, sync: int, finished: int
) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED_RUN, tmp_path / "b", str(sync)], check=False)
    assert killed.returncode == -signal.SIGKILL
    left = sorted(contents(tmp_path / "b"))
    assert LOCK_FILE in left
    assert sum(name.endswith(".dfq-tmp") for name in left) == 1
    with DatasetWriter.begin(tmp_path / "b", make_plan()) as writer:
        assert [shard.index for shard in writer.pending()] == list(range(finished, 3))
        assert not any(name.endswith(".dfq-tmp") for name in contents(tmp_path / "b") if name != LOCK_FILE)
    run(tmp_path / "b")
    assert contents(run(tmp_path / "a").folder) == contents(tmp_path / "b")


def test_cut_and_changed_shards_of_an_unfinished_run_are_made_again(tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        run(tmp_path / "b", stop_after=2)
    first, second = (tmp_path / "b" / shard_file(index) for index in range(2))
    first.write_bytes(first.read_bytes()[:-1])
    data = bytearray(second.read_bytes())
    data[-1] ^= 1
    second.write_bytes(data)
    with DatasetWriter.begin(tmp_path / "b", make_plan()) as writer:
        assert [shard.index for shard in writer.pending()] == [0, 1, 2]
    run(tmp_path / "b")
    assert contents(run(tmp_path / "a").folder) == contents(tmp_path / "b")


def test_shard_copied_from_another_run_is_made_again(tmp_path: Path) -> None:
    other = run(tmp_path / "other", make_plan(seed=4))
    with pytest.raises(StoppedError):
        run(tmp_path / "b", stop_after=1)
    (tmp_path / "b" / shard_file(1)).write_bytes((other.folder / shard_file(1)).read_bytes())
    with DatasetWriter.begin(tmp_path / "b", make_plan()) as writer:
        assert [shard.index for shard in writer.pending()] == [1, 2]


def test_second_run_of_a_finished_set_changes_nothing(tmp_path: Path) -> None:
    run(tmp_path)
    before = contents(tmp_path)
    with DatasetWriter.begin(tmp_path, make_plan()) as writer:
        assert writer.pending() == []
        assert writer.finish().manifest.divergence == DIVERGENCE
    assert contents(tmp_path) == before


def test_more_samples_append_shards_and_keep_the_old_ones(tmp_path: Path) -> None:
    before = contents(run(tmp_path).folder)
    data = run(tmp_path, make_plan(15))
    assert [shard.num_samples for shard in data.manifest.shards] == [4, 4, 2, 4, 1]
    after = contents(tmp_path)
    assert {name: after[name] for name in before if name != MANIFEST_FILE} == {
        name: content for name, content in before.items() if name != MANIFEST_FILE
    }
    assert len({bytes(data[index].inputs.numpy().data) for index in range(15)}) == 15


def test_interrupted_extension_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(tmp_path / name)
    with pytest.raises(StoppedError):
        run(tmp_path / "b", make_plan(18), stop_after=1)
    with pytest.raises(DataError, match="unfinished run: 4 of 5 shards are there"):
        SyntheticDataset.open(tmp_path / "b")
    for name in ("a", "b"):
        run(tmp_path / name, make_plan(18))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_extension_in_whole_shards_equals_one_run(tmp_path: Path) -> None:
    run(tmp_path / "b", make_plan(8))
    run(tmp_path / "b", make_plan(11))
    assert contents(run(tmp_path / "a", make_plan(11)).folder) == contents(tmp_path / "b")


def test_unfinished_plan_may_shrink_to_what_is_written(tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        run(tmp_path / "b", make_plan(1000), stop_after=1)
    run(tmp_path / "b")
    assert contents(run(tmp_path / "a").folder) == contents(tmp_path / "b")


def test_fewer_samples_than_there_are_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(
        UsageError, match=r"already holds 10 samples, but 9 are requested\. A set can only grow: request 10"
    ):
        DatasetWriter.begin(tmp_path, make_plan(9))
    assert len(SyntheticDataset.open(tmp_path)) == 10


def test_run_that_wrote_no_shard_binds_nobody(tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        run(tmp_path, make_plan(model_digest="cd" * 32), stop_after=0)
    assert run(tmp_path).manifest.model_digest == "ab" * 32


@pytest.mark.parametrize("stop_after", [None, 1])
def test_other_models_data_set_is_refused_and_untouched(tmp_path: Path, stop_after: int | None) -> None:
    if stop_after is None:
        run(tmp_path)
    else:
        with pytest.raises(StoppedError):
            run(tmp_path, stop_after=stop_after)
    before = contents(tmp_path)
    with pytest.raises(DataError) as caught:
        DatasetWriter.begin(tmp_path, make_plan(model_digest="cd" * 32))
    assert str(caught.value) == (
        f"{tmp_path} holds the data set of another model: its model digest is abababababab, "
        "this model's is cdcdcdcdcdcd. Choose another output folder."
    )
    assert contents(tmp_path) == before


def test_other_settings_are_refused_by_name_with_both_digests(tmp_path: Path) -> None:
    run(tmp_path)
    plan = make_plan(generator=GeneratorRecord("noise", "dfq-noise", "1.0", {"scale": 2, "terms": (1.0, 2.0)}), seed=4)
    with pytest.raises(DataError) as caught:
        DatasetWriter.begin(tmp_path, plan)
    assert re.search(
        r"other settings \(digest [0-9a-f]{12}, requested [0-9a-f]{12}\): generator\.options\.scale is 1, "
        r"requested 2; seed is 3, requested 4\. Use the same settings to resume or extend it, or choose another",
        str(caught.value),
    )


def test_many_differences_are_cut_short(tmp_path: Path) -> None:
    run(tmp_path)
    options = {f"option{index}": index for index in range(7)}
    with pytest.raises(DataError, match=r"option3 is None, requested 3; and 5 more\. Use the same"):
        DatasetWriter.begin(tmp_path, make_plan(generator=GeneratorRecord("noise", "dfq-noise", "1.0", options)))


def test_same_numbers_written_otherwise_are_the_same_settings(tmp_path: Path) -> None:
    run(tmp_path)
    same = make_plan(
        spec=replace(SPEC, value_range=(0.0, 1.0)),
        generator=GeneratorRecord("noise", "dfq-noise", "1.0", {"terms": [1.0, 2.0], "scale": 1}),
    )
    with DatasetWriter.begin(tmp_path, same) as writer:
        assert writer.pending() == []


def test_foreign_files_are_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match=r"holds files but no data set: it has 'thesis\.txt' but no manifest\.json"):
        DatasetWriter.begin(tmp_path, make_plan())
    assert contents(tmp_path) == {"thesis.txt": b"precious"}


def test_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("precious")
    for folder in (path, path / "below"):
        with pytest.raises(DataError, match=r"A data set is a folder, but .*out.* or one of its parents is a file"):
            DatasetWriter.begin(folder, make_plan())
    assert path.read_text() == "precious"


def test_invalid_manifest_stops_the_run(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_FILE).write_text("{")
    with pytest.raises(DataError, match=r"manifest\.json is not a valid manifest"):
        DatasetWriter.begin(tmp_path, make_plan())
    assert contents(tmp_path) == {MANIFEST_FILE: b"{"}


def test_damaged_shard_of_a_finished_set_is_not_overwritten(tmp_path: Path) -> None:
    path = run(tmp_path).folder / shard_file(1)
    path.write_bytes(path.read_bytes()[:-4])
    for plan in (make_plan(), make_plan(20)):
        with (
            DatasetWriter.begin(tmp_path, plan) as writer,
            pytest.raises(DataError, match=r"shard-00001\.safetensors is damaged: its SHA-256 should be [0-9a-f]{64}"),
        ):
            writer.pending()


def test_deleted_shard_of_a_finished_set_is_made_again(tmp_path: Path) -> None:
    before = contents(run(tmp_path).folder)
    (tmp_path / shard_file(1)).unlink()
    run(tmp_path)
    assert contents(tmp_path) == before


def test_finished_shard_of_another_run_is_refused(tmp_path: Path) -> None:
    path = run(tmp_path).folder / MANIFEST_FILE
    path.write_text(path.read_text().replace('"seed": 3', '"seed": 4'))
    with (
        DatasetWriter.begin(tmp_path, make_plan(seed=4)) as writer,
        pytest.raises(DataError, match=r"shard-00000\.safetensors does not belong to the run that manifest"),
    ):
        writer.pending()


def test_second_run_in_the_folder_refuses_until_the_first_ends(tmp_path: Path) -> None:
    with DatasetWriter.begin(tmp_path, make_plan()):
        with pytest.raises(DataError, match=r"Another run is writing into .* two runs cannot share an output folder"):
            DatasetWriter.begin(tmp_path, make_plan())
        assert (tmp_path / LOCK_FILE).exists()
    run(tmp_path)


@pytest.mark.slow
def test_second_process_in_the_folder_refuses(tmp_path: Path) -> None:
    with DatasetWriter.begin(tmp_path, make_plan()):
        other = subprocess.run(
            [sys.executable, "-c", KILLED_RUN, tmp_path, "-1"], check=False, capture_output=True, text=True
        )
    assert other.returncode == 1
    assert "DataError: Another run is writing into" in other.stderr
    assert sorted(contents(tmp_path)) == [MANIFEST_FILE]


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_leaves_nothing_half_written_and_the_run_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    with DatasetWriter.begin(tmp_path / "b", make_plan()) as writer:
        first, second, _ = writer.pending()
        writer.write(first, *samples(writer, first))
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lambda _: raise_(OSError(error, os.strerror(error))))
            with pytest.raises(DataError) as caught:
                writer.write(second, *samples(writer, second))
        assert re.search(
            r"The disk is full: .*shard-00001\.safetensors could not be written \(.*; [\d,]+ bytes are free\)\. "
            r"Free some space and run the same command again: finished shards are kept\.",
            str(caught.value),
        )
        assert sorted(contents(tmp_path / "b")) == sorted([LOCK_FILE, MANIFEST_FILE, shard_file(0)])
    run(tmp_path / "b")
    assert contents(run(tmp_path / "a").folder) == contents(tmp_path / "b")


def raise_(error: Exception) -> None:
    raise error


def test_folder_that_cannot_be_filled_at_all_is_removed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: raise_(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(DataError, match=r"The disk is full: .*manifest\.json could not be written"):
        DatasetWriter.begin(tmp_path / "deep" / "out", make_plan())
    assert list(tmp_path.iterdir()) == []


# Root may write anywhere, so the operating system's refusal is played back where the tests run as root.
@pytest.mark.parametrize("error", [errno.EACCES, errno.EROFS])
def test_read_only_folder_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    open_file = os.open

    def refuse(path: str, flags: int, *rest: int, **options: int) -> int:
        if flags & os.O_CREAT:
            raise OSError(error, os.strerror(error), path)
        return open_file(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(DataError) as caught:
        DatasetWriter.begin(tmp_path / "out", make_plan())
    assert f"cannot be written ({os.strerror(error)}). Make its folder writable, or choose another output" in str(
        caught.value
    )
    assert list(tmp_path.iterdir()) == []


def test_parent_that_cannot_be_written_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: raise_(PermissionError(errno.EACCES, "Permission denied")))
    with pytest.raises(DataError, match=r"out cannot be written \(Permission denied\)\. Make its folder writable"):
        DatasetWriter.begin(tmp_path / "out", make_plan())


def test_any_other_refusal_is_told_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "replace", lambda *_: raise_(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(DataError, match=r"manifest\.json could not be written \(Input/output error\)\. Choose another"):
        DatasetWriter.begin(tmp_path, make_plan())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": torch.zeros(3, 2, 4)}, r"Shard 0 needs exactly 4 samples, got inputs for 3\. A generator must"),
        ({"inputs": torch.zeros(5, 2, 4)}, r"Shard 0 needs exactly 4 samples, got inputs for 5"),
        ({"inputs": torch.zeros(4, 2, 5)}, r"Shard 0 needs inputs of shape \(4, 2, 4\), got \(4, 2, 5\)"),
        (
            {"inputs": torch.full((4, 2, 4), torch.nan)},
            r"needs finite inputs, but 4 of 4 samples contain NaN",
        ),
        ({"inputs": torch.full((4, 2, 4), 1e300, dtype=torch.double)}, r"needs finite inputs, but 4 of 4"),
        ({"labels": torch.zeros(3, dtype=torch.long)}, r"Shard 0 needs exactly 4 samples, got labels for 3"),
        ({"labels": torch.zeros(4)}, r"Shard 0 needs integer labels, got torch\.float32"),
        ({"labels": torch.zeros(4, 1, dtype=torch.long)}, r"needs labels of shape \(4,\), got \(4, 1\)"),
        ({"outputs": {"aux": torch.zeros(3, 2)}}, r"Shard 0 needs exactly 4 samples, got outputs\.aux for 3"),
        (
            {"outputs": {"aux": torch.tensor([torch.inf, 0, 0, 0])}},
            r"needs finite outputs\.aux, but 1 of 4 samples",
        ),
    ],
)
def test_samples_that_do_not_fit_the_plan_are_refused(tmp_path: Path, changes: dict, message: str) -> None:
    with DatasetWriter.begin(tmp_path, make_plan()) as writer:
        shard = writer.pending()[0]
        tensors = dict(zip(("inputs", "labels", "outputs"), samples(writer, shard), strict=True))
        with pytest.raises(DataError, match=message):
            writer.write(shard, **{**tensors, **changes})
        assert not (tmp_path / shard_file(0)).exists()


def test_outputs_of_any_shape_come_back_by_name(tmp_path: Path) -> None:
    outputs = {"out": torch.rand(4, 3, 2), "aux": torch.rand(4), "heads.0": torch.rand(4, 1).bfloat16()}
    with DatasetWriter.begin(tmp_path, make_plan(4)) as writer:
        writer.write(ShardPlan(0, 4), torch.zeros(4, 2, 4), None, outputs)
        data = writer.finish()
    batch = next(iter(data.loader(4)))
    assert batch.labels is None
    assert set(batch.outputs) == set(outputs)
    for name, output in outputs.items():
        assert torch.equal(batch.outputs[name], output.float())
        assert torch.equal(data[2].outputs[name], output[2].float())


def test_any_floating_type_and_layout_is_stored_as_float32(tmp_path: Path) -> None:
    inputs = torch.rand(4, 4, 2, generator=torch.Generator().manual_seed(0)).bfloat16().transpose(1, 2)
    with DatasetWriter.begin(tmp_path, make_plan(4)) as writer:
        writer.write(ShardPlan(0, 4), inputs.requires_grad_(), torch.ones(4, dtype=torch.int32), None)
        data = writer.finish()
    assert torch.equal(data.inputs(), inputs.detach().float())
    assert data[0].labels.dtype == torch.int64


def test_shards_outside_the_plan_are_refused(tmp_path: Path) -> None:
    with DatasetWriter.begin(tmp_path, make_plan()) as writer:
        with pytest.raises(UsageError, match="The plan has 3 shards, so index 3 is out of range"):
            writer.write(ShardPlan(3, 4), torch.zeros(4, 2, 4), None, None)
        with pytest.raises(UsageError, match=r"Shard 2 has 2 samples in the plan, not 4\. Take the shards from"):
            writer.write(ShardPlan(2, 4), torch.zeros(4, 2, 4), None, None)


def test_finish_needs_every_shard(tmp_path: Path) -> None:
    with DatasetWriter.begin(tmp_path, make_plan()) as writer:
        writer.write(ShardPlan(0, 4), *samples(writer, ShardPlan(0, 4)))
        with pytest.raises(UsageError, match=r"2 of 3 shards in .* are not written yet, starting with shard-00001"):
            writer.finish(DIVERGENCE)
    with pytest.raises(DataError, match="unfinished run"):
        SyntheticDataset.open(tmp_path)


def test_finish_needs_the_same_tensors_in_every_shard(tmp_path: Path) -> None:
    with DatasetWriter.begin(tmp_path, make_plan(8)) as writer:
        writer.write(ShardPlan(0, 4), torch.zeros(4, 2, 4), None, None)
        writer.write(ShardPlan(1, 4), *samples(writer, ShardPlan(1, 4)))
        with pytest.raises(
            DataError, match=r"shard-00001\.safetensors holds .*labels.* A generator must yield the same"
        ):
            writer.finish(DIVERGENCE)


def test_written_inputs_come_from_disk_in_order_of_the_shards(tmp_path: Path) -> None:
    with DatasetWriter.begin(tmp_path, make_plan()) as writer:
        made = {shard.index: samples(writer, shard) for shard in writer.pending()}
        for shard in reversed(writer.pending()):
            writer.write(shard, *made[shard.index])
        found = [*writer.written_inputs()]
        assert [len(inputs) for inputs in found] == [4, 4, 2]
        assert all(torch.equal(inputs, made[index][0]) for index, inputs in enumerate(found))
        assert [len(inputs) for inputs in writer.written_inputs(batch_size=3)] == [3, 1, 3, 1, 2]


def test_writer_tells_a_set_that_was_complete_from_one_that_needs_a_manifest(tmp_path: Path) -> None:
    with DatasetWriter.begin(tmp_path, make_plan()) as writer:
        for shard in writer.pending():
            writer.write(shard, *samples(writer, shard))
    with DatasetWriter.begin(tmp_path, make_plan()) as writer:
        assert writer.pending() == []
        assert not writer.is_complete
        assert writer.finish(DIVERGENCE).manifest.divergence == DIVERGENCE
    with DatasetWriter.begin(tmp_path, make_plan()) as writer:
        assert writer.is_complete


def test_closed_writer_refuses_to_go_on(tmp_path: Path) -> None:
    with DatasetWriter.begin(tmp_path, make_plan()) as writer:
        pass
    with pytest.raises(UsageError, match=r"is closed\. Start it again with DatasetWriter\.begin\(\)"):
        writer.write(ShardPlan(0, 4), *samples(writer, ShardPlan(0, 4)))
    with pytest.raises(UsageError, match="is closed"):
        writer.finish(DIVERGENCE)


def test_more_versions_are_recorded(tmp_path: Path) -> None:
    with DatasetWriter.begin(tmp_path, make_plan(4)) as writer:
        writer.write(ShardPlan(0, 4), *samples(writer, ShardPlan(0, 4)))
        data = writer.finish(versions={"timm": "1.0"})
    assert data.manifest.versions["timm"] == "1.0"
    assert data.manifest.versions["torch"].startswith(torch.__version__.split("+")[0])


def test_shard_depends_on_model_settings_seed_index_and_size_alone(tmp_path: Path) -> None:
    plans = itertools.product((6, 10, 23), (4,))
    first = {contents(run(tmp_path / f"{n}", make_plan(n, shard_size=size)).folder)[shard_file(0)] for n, size in plans}
    assert len(first) == 1
