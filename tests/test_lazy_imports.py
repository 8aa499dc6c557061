"""What `import dfq_plugins` and `dfq --help` cost: nothing heavy, and little time."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

import dfq_plugins

HEAVY = ("torch", "torchvision", "numpy", "rich", "pydantic", "safetensors", "matplotlib", "jinja2")
HELP_LIMIT = 0.5  # seconds, promised to users


def run(code: str) -> str:
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return completed.stdout.strip()


def heavy_after(code: str) -> str:
    return run(f"import sys\n{code}\nprint([name for name in {HEAVY} if name in sys.modules])").splitlines()[-1]


@pytest.mark.parametrize(
    "code",
    [
        "import dfq_plugins",
        "from dfq_plugins import hookimpl, InputSpec, Batch, Recipe, __version__",
        "import dfq_plugins.host.registry, dfq_plugins.cli, dfq_plugins.host.options, dfq_plugins.network.load",
        "import dfq_plugins.listeners.plugin",
        "from dfq_plugins.cli import cli\nfor name in ('--help', '--version'): cli([name], standalone_mode=False)",
        "from dfq_plugins.cli import cli\nfor name in cli.list_commands(0): cli([name, '-h'], standalone_mode=False)",
    ],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    assert heavy_after(code) == "[]"


def test_listing_plugins_imports_no_framework() -> None:
    code = "from dfq_plugins.host.registry import build_registry\nimport warnings\nwarnings.simplefilter('ignore')\n"
    assert heavy_after(code + "registry = build_registry()\nprint(len(registry.listeners))") == "[]"


def test_help_answers_within_half_a_second() -> None:
    def measure() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "dfq_plugins", "--help"], capture_output=True, check=True)
        return time.perf_counter() - start

    assert min(measure() for _ in range(5)) < HELP_LIMIT  # the best of five: others may use the machine as well


def test_public_names_are_listed_and_documented_types_resolve() -> None:
    assert set(dfq_plugins.__all__) <= set(dir(dfq_plugins))
    from dfq_plugins.types import InputSpec

    assert dfq_plugins.InputSpec is InputSpec
    assert isinstance(dfq_plugins.__version__, str)


@pytest.mark.parametrize("name", sorted(dfq_plugins.__all__))
def test_every_public_name_exists(name: str) -> None:
    assert getattr(dfq_plugins, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'dfq_plugins' has no attribute 'synthesis_'"):
        dfq_plugins.synthesis_  # type: ignore[attr-defined]  # noqa: B018
