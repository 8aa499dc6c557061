"""Fixtures that many tests share: a tiny trained-looking network and, where it is there, the real data pack."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from dfq_plugins.host.registry import Registry, build_registry
from dfq_plugins.synthesis.run import synthesize
from dfq_plugins.types import InputSpec
from forks import ForkServer
from places import ROOT, SUPPORT
from tiny_networks import TinyNetwork, settle_batch_norm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from dfq_plugins.data.dataset import SyntheticDataset


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


PIPELINE_PLUGINS = {"builtin-generators": "dfq_plugins.generators.plugin", "outside": "pipeline_plugins"}


def _registry_of(plugins: dict[str, str]) -> Iterator[Registry]:
    """Yield a registry of just these plugins; the helper module is imported afresh for each test."""
    entry_points = [EntryPoint(name, module, "dfq_plugins") for name, module in plugins.items()]
    yield build_registry(entry_points=entry_points, strict=True)
    del sys.modules[plugins["outside"]]


@pytest.fixture
def pipeline_registry() -> Iterator[Registry]:
    """The built-in generators, and those and the calibrators of pipeline_plugins.py."""
    yield from _registry_of(PIPELINE_PLUGINS)


@pytest.fixture
def finetuning_registry() -> Iterator[Registry]:
    """The generators and calibrators of finetuning_plugins.py."""
    yield from _registry_of({"outside": "finetuning_plugins"})


QUICK_SYNTHESIS = {"iterations": 2, "precision": "float32"}


@pytest.fixture
def synthesize_tiny(
    pipeline_registry: Registry, tiny_network: nn.Module, tiny_spec: InputSpec
) -> Callable[..., SyntheticDataset]:
    """Synthesize with few and short steps, from the tiny network where no other is given."""

    def synthesized(model: nn.Module | None = None, **settings: Any) -> SyntheticDataset:
        name = settings.setdefault("generator", "bns")
        builtin = name in {"bns", "inception", "bns+inception"}
        settings["options"] = {**(QUICK_SYNTHESIS if builtin else {}), **settings.pop("options", {})}
        settings = {"spec": tiny_spec, "num_samples": 8, "registry": pipeline_registry, **settings}
        return synthesize(tiny_network if model is None else model, settings.pop("spec"), **settings)

    return synthesized
