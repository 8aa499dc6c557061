"""Fixtures that many tests share: a tiny trained-looking network and, where it is there, the real data pack."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from dfq_plugins.types import InputSpec
from forks import ForkServer
from networks import TinyNetwork, settle_batch_norm
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


@pytest.fixture(scope="session")
def fork_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    script = SUPPORT / "fork_server.py"
    command = [sys.executable, "-W", "ignore", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield ForkServer(process, tmp_path_factory.mktemp("forked"))
        process.stdin.close()
