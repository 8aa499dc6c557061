"""Runs the contract of a generator or calibrator programmatically, and returns the failures."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_CLASSES = {
    "generator": "InstalledGenerator",
    "learning generator": "InstalledLearningGenerator",
    "calibrator": "InstalledCalibrator",
}

ContractKind: TypeAlias = Literal["generator", "learning generator", "calibrator"]
"""Kinds of plugins with a contract; a learning generator that also makes data sets has two."""


@dataclass(frozen=True)
class ContractResult:
    """The result of running a contract.

    Args:
        passed: names of the tests that passed or did not apply.
        failed: name of each test that failed, with the reason.
    """

    passed: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def run_contract(kind: ContractKind, build: Callable[[], object], *, only: str = "") -> ContractResult:
    """Run the contract on new objects.

    Args:
        kind: kind of the plugin.
        build: builds the plugin; called once per test.
        only: substring of the names of the tests to run; all if empty.
    """
    result = ContractResult()
    where = f"{Path(__file__).with_name('installed.py')}::{_CLASSES[kind]}"
    # Ignore the user's pytest configuration and plugins.
    settings = [
        "-c",
        os.devnull,
        "--rootdir",
        str(Path(__file__).parent),
        "-p",
        "no:cacheprovider",
        "-p",
        "no:terminal",
    ]
    settings += ["--import-mode=importlib", "--capture=sys", "-o", "python_classes=Installed*"]
    with _no_other_plugins():
        pytest.main([where, "-k", only, *settings], plugins=[_Collector(result), _Provider(build)])
    return result


class _Provider:
    """Provides the plugin object to the contract."""

    def __init__(self, build: Callable[[], object]) -> None:
        self._build = build

    @pytest.fixture
    def plugin_under_check(self) -> object:
        return self._build()


class _Collector:
    """Records the outcome of each test."""

    def __init__(self, result: ContractResult) -> None:
        self._result = result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.rpartition("::")[2]
        if report.failed:
            self._result.failed.setdefault(name, reason(report.longrepr))
        elif report.when == "teardown" and name not in self._result.failed:
            self._result.passed.append(name)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._result.failed["collection"] = str(report.longrepr)


def reason(representation: Any) -> str:
    """Return an error's message, without the values that pytest appends."""
    crash = getattr(representation, "reprcrash", None)
    text = str(representation) if crash is None else str(crash.message)
    return text.removeprefix("AssertionError: ").removeprefix("Failed: ").partition("\nassert ")[0]


@contextmanager
def _no_other_plugins() -> Iterator[None]:
    """Disable the environment's pytest plugins and options within the block, then restore the environment."""
    names = ("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "PYTEST_ADDOPTS", "PYTEST_PLUGINS", "PYTEST_CURRENT_TEST")
    former = {name: os.environ.pop(name, None) for name in names}
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    try:
        yield
    finally:
        for name, value in former.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
