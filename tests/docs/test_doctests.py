"""The examples in the docstrings of the package and of the adapters whose framework is installed."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import pkgutil
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from types import ModuleType

ADAPTERS = {
    # what an adapter's modules import
    "dfq_torch_ao": ("torch",),
    "dfq_pytorch_quantization": ("pytorch_quantization",),
    "dfq_brevitas": ("brevitas",),
    "dfq_shared": ("onnx",),
}


def modules_of(package: str) -> list[str]:
    found = importlib.util.find_spec(package)
    if found is None or found.submodule_search_locations is None:
        return []
    names = [info.name for info in pkgutil.walk_packages(found.submodule_search_locations, f"{package}.")]
    return [package, *(name for name in names if not name.endswith("__main__"))]


def all_modules() -> list[str]:
    adapters = [
        name
        for adapter, needed in ADAPTERS.items()
        if all(importlib.util.find_spec(framework) for framework in needed)
        for name in modules_of(adapter)
    ]
    return [*modules_of("dfq_plugins"), *adapters]


def examples_of(module: ModuleType) -> list[doctest.DocTest]:
    return [found for found in doctest.DocTestFinder(exclude_empty=True).find(module) if found.examples]


@pytest.mark.parametrize("name", all_modules())
def test_examples(name: str) -> None:
    module = importlib.import_module(name)
    for test in examples_of(module):
        output: list[str] = []
        with torch.random.fork_rng():
            torch.manual_seed(0)
            outcome = doctest.DocTestRunner(verbose=False).run(test, out=output.append)
        assert outcome.failed == 0, "".join(output)


def test_the_examples_are_found() -> None:
    with_examples = [name for name in modules_of("dfq_plugins") if examples_of(importlib.import_module(name))]
    assert len(with_examples) > 10
