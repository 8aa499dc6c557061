"""The pages under docs/ without a test file of their own: examples run, and tables say what the code says."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import re
import shlex
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

import dfq_plugins
from dfq_plugins import errors, hookspecs
from dfq_plugins.cli import cli
from dfq_plugins.synthesis.options import InversionOptions
from places import DOCS, ROOT

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

TESTED_ELSEWHERE = {
    "writing-a-plugin",
    "torch-ao",
    "torchao",
    "pytorch-quantization",
    "modelopt",
    "brevitas",
    "onnxruntime",
    "several-machines",
}


def page(name: str) -> str:
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and content of each code block that is an example."""
    return [
        pair for pair in re.findall(r"^```(\w+)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE) if pair[0] != "text"
    ]


def commands(block: str) -> list[str]:
    return block.replace("\\\n", " ").splitlines()


def pages_with_examples() -> list[str]:
    names = (str(path.relative_to(DOCS).with_suffix("")) for path in DOCS.rglob("*.md") if "_build" not in path.parts)
    return sorted(
        name
        for name in names
        if name.rpartition("/")[2] not in TESTED_ELSEWHERE
        and {kind for kind, _ in blocks(page(name))} & {"python", "sh"}
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", pages_with_examples())
def test_the_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for kind, block in blocks(page(name)):
        if kind == "python":
            exec(compile(block, f"{name}.md", "exec"), names)  # noqa: S102  (our own pages)
            continue
        for line in commands(block) if kind == "sh" else ():
            program, *arguments = shlex.split(line)
            assert program == "dfq"
            result = CliRunner().invoke(cli, arguments)
            assert result.exit_code == 0, result.output


def test_there_are_pages_with_examples() -> None:
    assert {"index", "choosing", "without-batchnorm", "reproducibility"} <= set(pages_with_examples())


def test_the_nearest_data_set_of_the_choosing_page_is_the_fitted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = (block for kind, block in blocks(page("choosing")) if kind == "sh")
    for line in commands(block):
        result = CliRunner().invoke(cli, shlex.split(line)[1:])
    assert result.stdout.index("fitted") < result.stdout.index("noise")


def test_every_hook_is_on_its_page_with_its_signature() -> None:
    shown = re.findall(r"^\| `(dfq_\w+\(.*?)` \|", page("reference/hooks"), flags=re.MULTILINE)
    hooks = [function for name, function in vars(hookspecs).items() if name.startswith("dfq_")]
    signatures = [f"{hook.__name__}{inspect.signature(hook)}".replace("'", "") for hook in hooks]
    assert [text.replace("\\|", "|") for text in shown] == signatures


def test_the_methods_behind_an_entry_are_listed_with_their_signatures() -> None:
    from dfq_plugins.types import Calibrator, DataGenerator, LearningGenerator

    text = page("reference/hooks")
    for protocol in (DataGenerator, LearningGenerator, Calibrator):
        for name, method in vars(protocol).items():
            if inspect.isfunction(method) and not name.startswith("_"):
                parameters = list(inspect.signature(method).parameters.values())[1:]
                plain = inspect.Signature(
                    [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
                )
                assert f"`{name}{plain}`" in text


def test_every_exit_code_is_on_the_page_of_the_command_line() -> None:
    shown = {int(code) for code in re.findall(r"^\| (\d+) \|", page("reference/command-line"), flags=re.MULTILINE)}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.DfqError)]
    assert shown == {0, errors.INTERRUPTED_EXIT_CODE, *(kind.exit_code for kind in kinds)}


def test_the_settings_that_are_recommended_exist() -> None:
    known = {field.name for field in dataclasses.fields(InversionOptions)}
    known |= set(inspect.signature(dfq_plugins.synthesize).parameters)
    known |= {field.name for field in dataclasses.fields(dfq_plugins.InputSpec)}
    section = page("choosing").split("## Settings")[1].split("## Which")[0]
    rows = re.findall(r"^\| ([^|]+) \|", section, flags=re.MULTILINE)[1:]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert named
    assert named <= known


def test_links_between_pages_lead_somewhere() -> None:
    for path in DOCS.rglob("*.md"):
        if "_build" in path.parts:
            continue
        for target in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", path.read_text(encoding="utf-8").replace("\n", " ")):
            assert (path.parent / target).is_file(), f"{path.name}: {target}"


def test_the_changelog_begins_with_this_version() -> None:
    first = re.search(r"^## ([\d.]+)", page("changelog"), flags=re.MULTILINE)
    assert first is not None
    assert dfq_plugins.__version__.startswith(first[1])


def script(name: str) -> ModuleType:
    """Load a script of docs/images."""
    specification = importlib.util.spec_from_file_location(name, DOCS / "images" / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_diagrams_are_what_their_script_draws() -> None:
    diagrams = script("diagrams")
    for name, diagram in (
        ("inversion", diagrams.INVERSION),
        ("calibration", diagrams.CALIBRATION),
        ("fine-tuning", diagrams.FINE_TUNING),
    ):
        assert (DOCS / "images" / f"{name}.svg").read_text(encoding="utf-8") == diagrams.draw(*diagram)


def test_the_picture_of_the_architecture_is_current() -> None:
    assert script("architecture").is_current(), "run python docs/images/architecture.py"


def test_the_picture_drops_the_imports_that_follow_from_others() -> None:
    necessary = script("architecture").necessary
    assert necessary({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == [("a", "b"), ("b", "c")]


def test_the_files_on_the_page_on_architecture_exist() -> None:
    text = page("architecture")
    named = {name for name in re.findall(r"`([\w./]+)`", text) if re.search(r"/|^(types|errors|hookspecs)\.py$", name)}
    assert "synthesis/run.py" in named
    for name in named:
        assert (ROOT / name).exists() or (ROOT / "dfq_plugins" / name).exists(), name


def test_every_package_is_on_the_page_on_architecture() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", page("architecture"), flags=re.MULTILINE)
    packages = [path.parent.name for path in (ROOT / "dfq_plugins").glob("*/__init__.py")]
    assert sorted(listed) == sorted(packages)
