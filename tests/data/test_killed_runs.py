"""`kill -9` at random moments: whatever was cut off, the same command then makes the same folder, byte for byte."""

from __future__ import annotations

import os
import random
import signal
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from forks import ForkServer

KILLS = 20
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
    network.eval(), InputSpec((3, 8, 8)), num_samples={samples}, batch_size=4, output={folder!r},
    options={{"iterations": 12}}, listeners=[lambda event: time.sleep(0.01)],
)
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def run(fork_server: ForkServer, folder: Path, samples: int = 70, kill_after: float | None = None) -> int:
    """Make the set, and kill the process after so many seconds if it is still at work; return its exit code."""
    process = fork_server.start(SYNTHESIS.format(folder=str(folder), samples=samples))
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(process, signal.SIGKILL)  # it is not waited for yet, so that the number is still its own
    return fork_server.wait(process)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_run_killed_twenty_times_ends_as_if_it_had_never_been(fork_server: ForkServer, tmp_path: Path) -> None:
    began = time.monotonic()
    assert run(fork_server, tmp_path / "whole") == 0, fork_server.log.read_text()
    duration = time.monotonic() - began
    expected = contents(tmp_path / "whole")
    assert len(expected) == 19
    moments = random.Random(3)
    killed, found = 0, set()
    for _attempt in range(10 * KILLS):
        folder = tmp_path / f"folder-{killed // 5}"  # every five kills hit one set, and then it is finished
        code = run(fork_server, folder, kill_after=moments.uniform(0.02, duration / 3))
        killed += code == -signal.SIGKILL
        found.add(len([*folder.glob("shard-*.safetensors")]))
        if killed % 5 == 0 and code == -signal.SIGKILL:
            assert run(fork_server, folder) == 0, fork_server.log.read_text()
            assert contents(folder) == expected
        if killed >= KILLS:
            break
    assert killed == KILLS, f"only {killed} of {10 * KILLS} runs were hit"
    assert len(found) > 3, f"the kills hit few different moments: {found}"


@pytest.mark.slow
def test_extension_killed_on_the_way_ends_as_if_it_had_never_been(fork_server: ForkServer, tmp_path: Path) -> None:
    for name in ("whole", "killed"):
        assert run(fork_server, tmp_path / name, samples=10) == 0, fork_server.log.read_text()
    before = contents(tmp_path / "whole")
    assert run(fork_server, tmp_path / "whole", samples=60) == 0, fork_server.log.read_text()
    for kill_after in (0.1, 0.3):
        run(fork_server, tmp_path / "killed", samples=60, kill_after=kill_after)
    assert run(fork_server, tmp_path / "killed", samples=60) == 0, fork_server.log.read_text()
    after = contents(tmp_path / "killed")
    assert after == contents(tmp_path / "whole")
    assert {name: after[name] for name in before if name.startswith("shard")}.items() <= before.items()
