"""Memory that is kept between steps: no page faults while it is kept, given back afterwards, off where unknown."""

from __future__ import annotations

import os
import resource
import sys

import pytest
import torch

from dfq_plugins import allocation

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is a library of Linux")

VALUES = 32 * allocation.MEBIBYTE  # 128 MiB of float32, beyond what glibc ever keeps by itself
PAGES = 4 * VALUES // 4096


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def test_the_second_block_needs_no_new_pages() -> None:
    with allocation.kept_memory():
        torch.ones(VALUES)
        before = faults()
        torch.ones(VALUES)
        kept = faults() - before
    torch.ones(VALUES)
    before = faults()
    torch.ones(VALUES)
    assert kept < PAGES // 10
    assert faults() - before > PAGES // 2


def test_what_is_free_goes_back_to_the_system() -> None:
    def resident() -> int:
        with open("/proc/self/statm") as file:  # noqa: PTH123  not a file of ours
            return int(file.read().split()[1]) * 4096

    before = resident()
    with allocation.kept_memory():
        torch.ones(VALUES)
        assert resident() - before > 3 * VALUES
    assert resident() - before < VALUES


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
