"""Imports the benchmarks' modules, whose folder is not on the path: one of them has the name of a package."""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING

from places import ROOT

if TYPE_CHECKING:
    from types import ModuleType

FOLDER = ROOT / "tests" / "benchmarks"


def benchmark_module(name: str) -> ModuleType:
    """Return the module of a benchmark; what it imports from its own folder is loaded as well."""
    full_name = f"benchmark_{name}"
    if full_name not in sys.modules:
        location = importlib.util.spec_from_file_location(full_name, FOLDER / f"{name}.py")
        assert location is not None
        assert location.loader is not None
        module = sys.modules[full_name] = importlib.util.module_from_spec(location)
        sys.path.insert(0, str(FOLDER))
        try:
            location.loader.exec_module(module)
        finally:
            sys.path.remove(str(FOLDER))
    return sys.modules[full_name]
