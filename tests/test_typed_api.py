"""A user's typed script passes mypy and pyright in their strict modes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import dfq_plugins

SCRIPT = '''
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import dfq_plugins as dfq
from dfq_plugins import hookimpl
from dfq_plugins.errors import DfqError
from dfq_plugins.types import Batch, GeneratorEntry, ProgressEvent


@dataclass(frozen=True)
class Options:
    """Settings of the generator below."""

    spread: float = 1.0


@hookimpl
def dfq_generators() -> Iterable[GeneratorEntry]:
    """Provide it."""
    yield GeneratorEntry("mine", "noise", "mine:Mine", options=Options)


def show(event: ProgressEvent) -> None:
    """Print progress."""
    print(event.stage, event.completed / event.total, event.metrics.get("loss", 0.0))


def main(model: nn.Module) -> None:
    """Synthesize and quantize."""
    spec = dfq.InputSpec(shape=(3, 32, 32), mean=(0.5,) * 3, std=(0.25,) * 3, value_range=(0, 1))
    try:
        data: dfq.SyntheticDataset = dfq.synthesize(model, spec, num_samples=64, output=Path("set"), listeners=[show])
    except DfqError as error:
        raise SystemExit(error.exit_code) from error
    sample: Batch = data[0]
    shape: torch.Size = sample.inputs.shape
    batches: Iterator[torch.Tensor] = data.batches(16)
    for inputs, labels, logits in data.loader(batch_size=16):
        assert labels is not None and logits is not None
        print(inputs.shape, labels.shape, logits.shape)
    data.forward_loop(model)
    run = dfq.run_quantization(model, data, calibrator="torch-ao", recipe=dfq.Recipe(8, 8))
    quantized: nn.Module = dfq.quantize(model, data, calibrator="brevitas")
    first: str = run.coverage.quantized[0].name
    sizes: list[int] = [artifact.size_bytes for artifact in run.artifacts]
    agreement: float = run.agreement
    loaded: nn.Module = dfq.load_quantized(run.artifacts[0].path)
    print(shape, batches, quantized, first, sizes, agreement, loaded, dfq.__version__)
'''


ROOT = Path(dfq_plugins.__file__).parents[1]
"""Where the package lies: type checkers do not see an editable install, whose finder is a program."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("user")
    (folder / "right.py").write_text(SCRIPT)
    (folder / "wrong.py").write_text(SCRIPT.replace("num_samples=64", 'num_samples="64"'))
    (folder / "typo.py").write_text(SCRIPT.replace('calibrator="brevitas"', 'calibrator="brevitas", recpie="w4a4"'))
    return folder


@pytest.mark.slow
def test_mypy_accepts_a_users_script_and_finds_a_wrong_call(folder: Path, pytestconfig: pytest.Config) -> None:
    # Kept where pytest keeps things: reading torch's types takes half a minute.
    cache = kept.mkdir("typed-api") if (kept := getattr(pytestconfig, "cache", None)) else folder / "cache"
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--follow-imports=silent"]
    completed = subprocess.run(
        [*command, f"--cache-dir={cache}", "right.py", "wrong.py", "typo.py"],
        cwd=folder,
        env=os.environ | {"MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    errors = sorted(line for line in completed.stdout.splitlines() if ": error: " in line)
    assert [line.split(":")[0] for line in errors] == ["typo.py", "wrong.py"], completed.stdout + completed.stderr
    assert 'Unexpected keyword argument "recpie" for "quantize"' in errors[0]
    assert 'Argument "num_samples" to "synthesize" has incompatible type "str"; expected "int"' in errors[1]


@pytest.mark.slow
def test_pyright_accepts_a_users_script_and_finds_a_wrong_call(folder: Path) -> None:
    settings = {"typeCheckingMode": "strict", "include": ["right.py", "wrong.py", "typo.py"], "extraPaths": [str(ROOT)]}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable, "--outputjson", "-p", str(folder)]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    found = json.loads(completed.stdout)["generalDiagnostics"]
    assert {Path(diagnostic["file"]).name for diagnostic in found} == {"wrong.py", "typo.py"}, completed.stdout
    assert {diagnostic["rule"] for diagnostic in found} >= {"reportArgumentType", "reportCallIssue"}
