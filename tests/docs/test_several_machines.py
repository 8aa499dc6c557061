"""The page on several machines: its commands start as they are written, and make the set that one process makes."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from torch.distributed.run import get_args_parser

from dfq_plugins.cli import cli
from places import DOCS

if TYPE_CHECKING:
    from pathlib import Path

PAGE = DOCS / "how-to" / "several-machines.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = [
    match.replace("\\\n", " ") for match in re.findall(r"^```bash\n(.*?)^```", TEXT, flags=re.DOTALL | re.MULTILINE)
]
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if re.match(r"(srun )?(torchrun|dfq) ", line)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_commands_are_found() -> None:
    assert [len(BLOCKS), len(COMMANDS)] == [4, 4]


@pytest.mark.parametrize("command", COMMANDS, ids=["one machine", "several", "slurm", "budget"])
def test_every_option_exists(command: str) -> None:
    words = shlex.split(re.sub(r"\$\w+", "4", command.removeprefix("srun ")))
    if words[0] == "torchrun":
        torchrun = get_args_parser().parse_args(words[1:])
        assert (torchrun.module, torchrun.training_script) == (True, "dfq_plugins")
        words = ["dfq", *torchrun.training_script_args]
    group = cli.make_context("dfq", words[1:], resilient_parsing=True)
    name, sub, rest = cli.resolve_command(group, words[1:])
    assert name == "synthesize"
    with sub.make_context(name, list(rest)) as context:
        assert context.params["output"] is not None


def test_slurm_script_is_a_script(tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text(next(block for block in BLOCKS if "#SBATCH" in block))
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.slow
def test_torchrun_on_one_machine_makes_the_set_of_one_process(tmp_path: Path) -> None:
    """With fewer samples and steps than the page, and one thread for each process in both cases."""
    command = COMMANDS[0].replace("--num-samples 256", "--num-samples 100 -O iterations=3 --threads 1")
    words = shlex.split(command)
    assert words[0] == "torchrun"
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [sys.executable, "-m", "torch.distributed.run", *words[1:]]
    shared = subprocess.run(started, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert shared.returncode == 0, shared.stderr
    assert shared.stdout.count("100 samples from bns") == 1  # one process speaks
    alone = [sys.executable, "-m", "dfq_plugins", *words[words.index("dfq_plugins") + 1 :], "--output", "alone"]
    subprocess.run(alone, cwd=tmp_path, env=variables, capture_output=True, check=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")
    assert len(contents(tmp_path / "out")) == 5


def test_python_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(block.replace("num_samples=256", 'num_samples=8, options={"iterations": 1}'), names)  # noqa: S102  our own page
    assert (tmp_path / "out" / "manifest.json").is_file()
