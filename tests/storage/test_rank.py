"""ProcessGroup of one run share the shards of a folder: same bytes for any number, and no shard lost with a rank."""

from __future__ import annotations

import os
import re
import signal
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from dfq_plugins.data.manifest import MANIFEST_FILE, GeneratorRecord, shard_file
from dfq_plugins.data.plan import DatasetPlan
from dfq_plugins.data.writer import DatasetWriter
from dfq_plugins.errors import DataError, UsageError
from dfq_plugins.storage import rank as ranks
from dfq_plugins.storage.files import LOCK_FILE
from dfq_plugins.storage.locks import FolderLock
from dfq_plugins.storage.rank import Rank
from dfq_plugins.types import InputSpec

if TYPE_CHECKING:
    from pathlib import Path

    from forks import ForkServer

PLAN = DatasetPlan("ab" * 32, GeneratorRecord("noise", "dfq-noise", "1.0"), 3, InputSpec((2, 4)), 14, 4)
PAIR = (Rank(0, 2, 0, 2, "run"), Rank(1, 2, 1, 2, "run"))

SYNTHESIS = """
import time, torch
from torch import nn
from dfq_plugins import InputSpec, synthesize
torch.set_num_threads(1)
torch.manual_seed(0)
network = nn.Sequential(
    nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
)
with torch.no_grad():
    network(torch.randn(64, 3, 8, 8))
synthesize(
    network.eval(), InputSpec((3, 8, 8)), num_samples=60, batch_size=8, output={folder!r},
    options={{"iterations": 12}}, listeners=[lambda event: time.sleep({pause})],
)
"""


def write(writer: DatasetWriter, seconds: float = 0) -> list[int]:
    """Write this rank's shares, and return which they were."""
    made = []
    for shard in writer.shares():
        time.sleep(seconds)
        rng = torch.Generator().manual_seed(writer.shard_seed(shard))
        writer.write(shard, torch.rand(shard.num_samples, 2, 4, generator=rng), None, None)
        made.append(shard.index)
    return made


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def alone(folder: Path) -> dict[str, bytes]:
    with DatasetWriter.begin(folder, PLAN) as writer:
        write(writer)
        writer.finish({"norm": 0.5})
    return contents(folder)


def start_ranks(fork_server: ForkServer, count: int, folder: Path, pause: float = 0) -> list[int]:
    code = SYNTHESIS.format(folder=str(folder), pause=pause)
    world = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "TORCHELASTIC_RUN_ID": "a run"}
    return [fork_server.start(code, RANK=str(i), LOCAL_RANK=str(i), **world) for i in range(count)]


@pytest.fixture(scope="module")
def uninterrupted(fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a data set that one process made in one go."""
    folder = tmp_path_factory.mktemp("alone") / "out"
    process = fork_server.start(SYNTHESIS.format(folder=str(folder), pause=0))
    assert fork_server.wait(process) == 0, fork_server.log.read_text()
    assert len(contents(folder)) == 9
    return contents(folder)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 4])
def test_any_number_of_ranks_gives_the_same_bytes(
    fork_server: ForkServer, uninterrupted: dict[str, bytes], tmp_path: Path, count: int
) -> None:
    folder = tmp_path / "out"
    for process in start_ranks(fork_server, count, folder, pause=0.01):
        assert fork_server.wait(process) == 0, fork_server.log.read_text()
    assert contents(folder) == uninterrupted


@pytest.mark.slow
def test_shard_of_a_killed_rank_falls_to_the_others(
    fork_server: ForkServer, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    first, second = start_ranks(fork_server, 2, folder, pause=0.05)
    while len([*folder.glob("shard-*")]) < 2:
        time.sleep(0.01)
    os.kill(first, signal.SIGKILL)
    assert fork_server.wait(first) == -signal.SIGKILL
    assert fork_server.wait(second) == 0, fork_server.log.read_text()
    left = contents(folder)
    # The killed rank's own files may stay until the next run comes; the set is complete and right without them.
    assert {name: data for name, data in left.items() if not name.startswith(".")} == uninterrupted
    assert fork_server.wait(fork_server.start(SYNTHESIS.format(folder=str(folder), pause=0))) == 0
    assert contents(folder) == uninterrupted


def test_restarted_ranks_fill_what_is_missing(
    fork_server: ForkServer, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    processes = start_ranks(fork_server, 2, folder, pause=0.05)
    while len([*folder.glob("shard-*")]) < 3:
        time.sleep(0.01)
    for process in processes:
        os.kill(process, signal.SIGKILL)
        fork_server.wait(process)
    assert (folder / MANIFEST_FILE).read_bytes() != uninterrupted[MANIFEST_FILE]
    for process in start_ranks(fork_server, 2, folder):
        assert fork_server.wait(process) == 0, fork_server.log.read_text()
    assert contents(folder) == uninterrupted


def test_ranks_take_shards_in_turn_and_each_opens_the_set(tmp_path: Path) -> None:
    expected = alone(tmp_path / "alone")
    first, second = (DatasetWriter.begin(tmp_path / "out", PLAN, rank) for rank in PAIR)
    with first, second:
        shares = first.shares()
        assert next(shares).index == 0
        others = second.shares()
        assert next(others).index == 1
        assert (tmp_path / "out" / f"{LOCK_FILE}.{shard_file(1)}").exists()
        others.close()  # the second rank gives up
        first.write(first.manifest.shards[0], torch.rand(4, 2, 4, generator=rng_of(first, 0)), None, None)
        assert next(shares).index == 1
        first.close()
        assert write(second) == [1, 2, 3]
        second.await_turn_to_finish()
        assert not second.is_complete
        second.finish({"norm": 0.5})
    assert contents(tmp_path / "out") == expected


def rng_of(writer: DatasetWriter, index: int) -> torch.Generator:
    return torch.Generator().manual_seed(writer.manifest.settings.shard_seed(index))


def test_rank_that_comes_to_finish_second_takes_the_first_ones_manifest(tmp_path: Path) -> None:
    first, second = (DatasetWriter.begin(tmp_path, PLAN, rank) for rank in PAIR)
    with second:
        with first:
            assert write(first) == [0, 1, 2, 3]
            assert first.samples_left == 0
            first.await_turn_to_finish()
            first.finish({"norm": 0.5})
        assert write(second) == []
        second.await_turn_to_finish()
        assert second.is_complete
        assert second.finish().manifest.divergence == {"norm": 0.5}
    assert not [name for name in contents(tmp_path) if name.startswith(".")]


def test_rank_that_comes_when_all_is_done_opens_the_set(tmp_path: Path) -> None:
    expected = alone(tmp_path)
    with DatasetWriter.begin(tmp_path, PLAN, PAIR[1]) as writer:
        assert write(writer) == []
        writer.await_turn_to_finish()
        assert len(writer.finish()) == 14
    assert contents(tmp_path) == expected


def test_ranks_of_another_run_and_single_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfq_plugins.storage.locks.PATIENCE_SECONDS", 0.2)
    refusal = (
        r"Another run is writing into .* two runs cannot share an output folder\. Wait until it finishes, or choose"
    )
    with DatasetWriter.begin(tmp_path, PLAN, PAIR[0]):
        for other in (replace(PAIR[1], run="other"), PAIR[0], None):
            with pytest.raises(DataError, match=refusal):
                DatasetWriter.begin(tmp_path, PLAN, other)
        with DatasetWriter.begin(tmp_path, PLAN, PAIR[1]):
            pass
    with DatasetWriter.begin(tmp_path, PLAN), pytest.raises(DataError, match=refusal):
        DatasetWriter.begin(tmp_path, PLAN, PAIR[0])
    assert set(contents(tmp_path)) == {MANIFEST_FILE}


def test_rank_waits_for_a_run_that_is_about_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    former, rank = FolderLock(tmp_path), FolderLock(tmp_path, PAIR[0])
    former.acquire()
    monkeypatch.setattr(time, "sleep", lambda _: former.release())
    assert not rank.acquire()
    rank.release()


def test_ranks_of_one_run_must_be_given_the_same(tmp_path: Path) -> None:
    with DatasetWriter.begin(tmp_path, PLAN, PAIR[0]):
        with pytest.raises(DataError, match=r"holds a data set with other settings .* seed is 3, requested 4"):
            DatasetWriter.begin(tmp_path, replace(PLAN, seed=4), PAIR[1])
        with pytest.raises(UsageError, match=r"one requests 14 samples and another 15\. Start all ranks with"):
            DatasetWriter.begin(tmp_path, replace(PLAN, num_samples=15), PAIR[1])


def test_locks_that_dead_ranks_left_hold_nobody_up(tmp_path: Path) -> None:
    for name in ("", ".other.rank-0", ".run.rank-0", f".{shard_file(0)}", ".finish"):
        (tmp_path / f"{LOCK_FILE}{name}").touch()
    with DatasetWriter.begin(tmp_path, PLAN, PAIR[0]) as writer:
        assert {name for name in contents(tmp_path) if name.startswith(".")} == {f"{LOCK_FILE}.run.rank-0"}
        assert write(writer) == [0, 1, 2, 3]


def test_failing_rank_gives_its_claim_back_while_the_error_is_looked_at(tmp_path: Path) -> None:
    first, second = (DatasetWriter.begin(tmp_path, PLAN, rank) for rank in PAIR)
    with second:
        shares = first.shares()
        next(shares)
        first.close()
        assert next(second.shares()).index == 0
        del shares


def test_environment_of_torchrun_is_read() -> None:
    variables = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    named, other = (Rank.current({**variables, "TORCHELASTIC_RUN_ID": name}) for name in ("a/b", "c"))
    assert (named.index, named.count, named.local_index, named.local_count) == (5, 8, 1, 4)
    assert re.fullmatch("[0-9a-f]{12}", named.run)
    assert named.run != other.run
    unnamed = [
        Rank.current({**variables, "TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "a", "MASTER_PORT": port}).run
        for port in ("1", "1", "2")
    ]
    assert unnamed[0] == unnamed[1] != unnamed[2]
    assert Rank.current({"WORLD_SIZE": "8"}).alone  # a scheduler's variable, and no rank to go with it
    assert Rank.current({"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}).alone


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, r"RANK must be below WORLD_SIZE \(2\), got 2\. Start the ranks with"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK must be a whole number of at least 0, got 'x'"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE must be a whole number of at least 1, got '0'"),
    ],
)
def test_nonsense_in_the_environment_is_refused(variables: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Rank.current(variables)


def test_cores_are_divided_among_the_ranks_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "_available_cores", lambda: 10)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert Rank().threads() is None
    assert [Rank(0, 8, 0, count).threads() for count in (2, 4, 16)] == [5, 2, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # what torchrun sets
    assert Rank(0, 2, 0, 2).threads() == 5
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert Rank(0, 2, 0, 2).threads() is None
