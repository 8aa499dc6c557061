"""The examples in the docstrings of the shared code."""

from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize(
    "module", ["inputs", "learned_range", "markers", "qdq_graph", "range_search", "static_pooling"]
)
def test_doctests(module: str) -> None:
    results = doctest.testmod(importlib.import_module(f"dfq_shared.tensorrt.{module}"))
    assert results.attempted
    assert not results.failed
