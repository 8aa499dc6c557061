"""Memory that is kept between steps: no page faults while it is kept, given back afterwards, off where unknown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import dfq_plugins
from dfq_plugins.network import allocation

if TYPE_CHECKING:
    from torch import nn

    from dfq_plugins.types import InputSpec

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is a library of Linux")

MEASURED = """
import json, resource
from statistics import median
from dfq_plugins.network import allocation

allocation.prefer_huge_pages()
import torch

VALUES = 16 * allocation.MEBIBYTE  # 64 MiB of float32, beyond what glibc ever keeps by itself

def faults_of_a_block():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(VALUES)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

start = resident()
with allocation.kept_memory():
    kept = median([faults_of_a_block() for _ in range(41)])
    held = resident() - start
left = resident() - start
fetched = median([faults_of_a_block() for _ in range(7)])
print(json.dumps({"kept": kept, "fetched": fetched, "held": held, "left": left, "block": 4 * VALUES}))
"""


@pytest.fixture(scope="module")
def measured() -> dict[str, float]:
    """Page faults of a block and resident bytes, in a process whose heap no other test has used."""
    done = subprocess.run([sys.executable, "-c", MEASURED], check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


@pytest.mark.slow
def test_a_block_of_the_same_size_needs_no_new_pages(measured: dict[str, float]) -> None:
    assert measured["kept"] < measured["fetched"] / 10


@pytest.mark.slow
def test_what_is_free_goes_back_to_the_system(measured: dict[str, float]) -> None:
    assert measured["held"] > 0.75 * measured["block"]
    assert measured["left"] < 0.25 * measured["block"]


def test_an_error_inside_passes_through() -> None:
    with pytest.raises(ValueError, match="inside"), allocation.kept_memory():
        raise ValueError("inside")


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocation, "_glibc", lambda: None)
    with allocation.kept_memory():
        pass


@pytest.mark.parametrize(("given", "expected"), [(None, "1"), ("0", "0")])
def test_huge_pages_unless_the_user_decided(given: str | None, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(allocation.HUGE_PAGES_VARIABLE, given or "")
    if given is None:
        monkeypatch.delenv(allocation.HUGE_PAGES_VARIABLE)
    allocation.prefer_huge_pages()
    assert os.environ[allocation.HUGE_PAGES_VARIABLE] == expected


def test_the_library_leaves_the_process_alone(
    tiny_network: nn.Module, tiny_spec: InputSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings of malloc are the whole process's: from Python they change only where it is asked for."""

    def touched() -> None:
        raise AssertionError("malloc's settings were changed")

    monkeypatch.setattr(allocation, "_glibc", touched)
    data = dfq_plugins.synthesize(tiny_network, tiny_spec, num_samples=8, options={"iterations": 1})
    training = {"steps": 1, "batch_size": 4, "num_evaluations": 1}
    dfq_plugins.distill(tiny_network, tiny_network, data, training=training)
