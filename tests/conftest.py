"""Fixtures that many tests share: a tiny trained-looking network and, where it is there, the real data pack."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from dfq_plugins.types import InputSpec
from places import ROOT, SUPPORT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
"""How many processes share the processors."""

if WORKERS > 1:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // WORKERS))
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))  # for processes that tests start


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by the fixtures that they use."""
    marks = {"shared_data": pytest.mark.data_pack, "fork_server": pytest.mark.processes}
    for item in items:
        for fixture, mark in marks.items():
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(mark)


class TinyNetwork(nn.Module):
    """Two conv-BatchNorm-ReLU layers with a residual add, average pooling and a linear classifier."""

    def __init__(self, channels: int = 3, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 8, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.relu1 = nn.ReLU()
        self.relu2 = nn.ReLU()
        self.linear = nn.Linear(8, classes)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.relu1(self.norm1(self.stem(inputs)))
        hidden = self.relu2(self.norm2(self.conv(hidden)) + hidden)
        return self.linear(hidden.mean((2, 3)))


def settle_batch_norm(network: nn.Module, inputs: torch.Tensor) -> nn.Module:
    """Give every BatchNorm the statistics of `inputs`, so that the network looks trained."""
    network.train()
    with torch.no_grad():
        for _ in range(60):
            network(inputs)
    return network.eval()


@pytest.fixture
def tiny_spec() -> InputSpec:
    return InputSpec((3, 8, 8), mean=(0.5,) * 3, std=(0.25,) * 3, value_range=(0.0, 1.0), num_classes=4)


@pytest.fixture
def tiny_network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = TinyNetwork()
        return settle_batch_norm(network, torch.randn(64, 3, 8, 8).clamp(-2, 2))


@pytest.fixture
def tiny_batches() -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    return [torch.randn(16, 3, 8, 8, generator=rng).clamp(-2, 2) for _ in range(3)]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real networks and images, or a skip where it is not there."""
    folder = ROOT.parent / "shared" / "data"
    if not (folder / "networks.py").is_file():
        pytest.skip("the data pack (../shared/data) is not on this machine")
    return folder


class ForkServer:
    """Starts processes in a moment, by forking one that has imported torch; see fork_server.py."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process = process
        self._folder = folder
        self._ask(None)
        self._count = 0

    def start(self, code: str, **environment: str) -> int:
        """Run `code` in a new process and return its id."""
        self._count += 1
        self.log = self._folder / f"{self._count}.log"
        return self._ask({"code": code, "environment": environment, "log": str(self.log)})

    def wait(self, process: int) -> int:
        """Return the exit code of a process that was started, negative for a signal."""
        return self._ask({"wait": process})

    def _ask(self, job: dict | None) -> int:
        if job is not None:
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline().strip()
        return 0 if answer == "ready" else json.loads(answer)


@pytest.fixture(scope="session")
def fork_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    script = SUPPORT / "fork_server.py"
    command = [sys.executable, "-W", "ignore", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield ForkServer(process, tmp_path_factory.mktemp("forked"))
        process.stdin.close()
