"""docs/writing-a-plugin.md, followed word for word: its files written, installed, found, checked and used."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from places import DOCS

if TYPE_CHECKING:
    from pathlib import Path

PAGE = (DOCS / "writing-a-plugin.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`(dfq-[\w./-]+)`\n\n```\w+\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE))
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"^```sh\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
    for line in block.replace("\\\n", " ").splitlines()
]

RUN_COMMANDS = """
import json, sys
from places import DOCS
from dfq_plugins.cli import cli
codes = []
for arguments in json.loads(sys.argv[1]):
    print("$", *arguments, flush=True)
    try:
        cli(arguments, prog_name="dfq")
    except SystemExit as done:
        codes.append(done.code)
import pytest
print("CODES", codes)
"""  # one process, since most of the time of a command goes into importing torch


@pytest.mark.parametrize("name", sorted(FILES))
def test_the_page_shows_the_source_that_lies_beside_it(name: str) -> None:
    assert FILES[name] == (DOCS / "plugins" / name).read_text(encoding="utf-8")


def test_the_page_shows_every_file_of_the_packages() -> None:
    lying = {
        str(path.relative_to(DOCS / "plugins"))
        for path in (DOCS / "plugins").rglob("*")
        if path.suffix in {".py", ".toml"}
    }
    assert set(FILES) == lying


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Write the page's files into an empty folder and install both packages into a site of their own."""
    folder, site = tmp_path_factory.mktemp("tutorial"), tmp_path_factory.mktemp("site")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    # What they depend on is installed already; the build needs no index either.
    quietly = ["--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--target", str(site)]
    packages = [words[-1] for words in COMMANDS if words[:3] == ["pip", "install", "-e"]]
    assert packages == ["./dfq-dead-leaves", "./dfq-ascent", "./dfq-tiny-ort"]
    subprocess.run([sys.executable, "-m", "pip", "install", *quietly, *packages], cwd=folder, check=True)
    return folder, site


@pytest.mark.slow
def test_the_commands_of_the_page_run(site: tuple[Path, Path]) -> None:
    folder, installed = site
    commands = [words[1:] for words in COMMANDS if words[0] == "dfq"]
    assert len(commands) == 7
    completed = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUN_COMMANDS, json.dumps(commands)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(installed), *filter(None, sys.path)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.stdout.splitlines()[-1:] == ["CODES [0, 0, 0, 0, 0, 0, 0]"], completed.stdout + completed.stderr
    assert "generator  dead-leaves  dfq-dead-leaves  0.1.0    ready" in completed.stdout
    assert "generator 'dead-leaves': 16 of 16 tests passed." in completed.stdout
    assert "learning generator 'ascent': 12 of 12 tests passed." in completed.stdout
    assert "Fine-tuned for 40 steps" in completed.stdout
    assert "calibrator 'tiny-ort': 23 of 23 tests passed." in completed.stdout
    assert "128 samples from dead-leaves" in completed.stdout
    assert "Quantized by tiny-ort at w8a8: 6 layers." in completed.stdout
    assert sorted(path.name for path in (folder / "int8").iterdir()) == ["artifacts.json", "model_tiny.onnx"]


@pytest.mark.slow
def test_the_packages_own_tests_are_the_contracts(site: tuple[Path, Path]) -> None:
    folder, installed = site
    assert COMMANDS[-1] == ["pytest", "dfq-dead-leaves", "dfq-ascent", "dfq-tiny-ort"]
    completed = subprocess.run(
        [sys.executable, "-m", *COMMANDS[-1], "-q", "-k", "recipe or finite or learns", "-p", "no:cacheprovider"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(installed), *filter(None, sys.path)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
    assert "5 passed" in completed.stdout
