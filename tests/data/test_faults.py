"""What goes wrong on real machines: no compiler, no cache, no memory. Each ends in a note, or in a next step."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from dfq_plugins.errors import UsageError
from dfq_plugins.generators.options import BatchNormInceptionOptions
from dfq_plugins.network.memory import halves
from dfq_plugins.statistics.augmentation import Augmentation, draw_maps
from dfq_plugins.synthesis.compilation import CACHE_VARIABLE, explained_failure, writable_compile_cache
from dfq_plugins.synthesis.objective import InversionObjective
from dfq_plugins.synthesis.run import synthesize

if TYPE_CHECKING:
    from dfq_plugins.types import InputSpec

QUICK = {"iterations": 6, "precision": "float32", "compile": "never"}


class Cramped(nn.Module):
    """A network whose memory holds a number of samples, with and without what a gradient needs."""

    def __init__(self, network: nn.Module, most: int, most_without_gradient: int, error: Exception) -> None:
        super().__init__()
        self.network = network
        self.most = (most_without_gradient, most)
        self.error = error
        self.refused: list[int] = []

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if len(inputs) > self.most[inputs.requires_grad]:
            raise self.error
        return self.network(inputs)


ALLOCATOR = RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried")
ERRORS = [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError(), ALLOCATOR]


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_batch_that_does_not_fit_is_halved_with_the_statistics_of_the_whole(
    tiny_network: nn.Module, tiny_spec: InputSpec, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    settings: dict[str, Any] = {"num_samples": 96, "batch_size": 48, "generator": "bns+inception", "options": QUICK}
    whole = synthesize(Cramped(tiny_network, 99, 99, error), tiny_spec, **settings)
    assert not warnings_in(caplog)
    halved = synthesize(Cramped(tiny_network, 24, 48, error), tiny_spec, **settings)
    assert warnings_in(caplog) == [
        "Out of memory for a batch of 48 samples: continuing with two halves and their combined statistics."
    ]
    torch.testing.assert_close(
        halved.inputs(), whole.inputs(), rtol=1e-3, atol=2e-3
    )  # Adam divides small differences by small gradients
    separate = synthesize(
        Cramped(tiny_network, 99, 99, error), tiny_spec, **{**settings, "options": {**QUICK, "step_samples": 24}}
    )
    assert (separate.inputs() - whole.inputs()).abs().max() > 0.05


@pytest.mark.parametrize("count", [48, 47, 2])
@pytest.mark.parametrize("shared", [False, True])
def test_gradient_of_the_halves_is_that_of_the_whole(
    tiny_network: nn.Module, tiny_spec: InputSpec, count: int, shared: bool
) -> None:
    rng = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, 3, 8, 8, generator=rng)
    labels = torch.randint(4, (count,), generator=rng)
    options = BatchNormInceptionOptions(precision="float32", class_weight=0.3, total_variation_weight=0.2)
    objective = InversionObjective(tiny_network, tiny_spec, options)
    others = torch.rand(objective.empty_pool().shape, generator=rng)
    rest = (others, 0.25) if shared else None
    maps = draw_maps(Augmentation(jitter=1, flip=True), tuple(inputs.shape), rng)
    whole = objective(inputs, labels, rest, maps)
    objective._halves = True
    for found, expected in zip(objective(inputs, labels, rest, maps), whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_odd_batches_are_split_as_evenly_as_can_be() -> None:
    parts = halves(torch.arange(5), torch.arange(5, 10))
    assert [[len(tensor) for tensor in part] for part in parts] == [[3, 3], [2, 2]]


def test_teacher_that_cannot_see_a_shard_at_once_sees_it_in_halves(
    tiny_network: nn.Module, tiny_spec: InputSpec, caplog: pytest.LogCaptureFixture
) -> None:
    settings: dict[str, Any] = {"num_samples": 20, "batch_size": 20, "generator": "gaussian"}
    expected = synthesize(Cramped(tiny_network, 99, 99, MemoryError()), tiny_spec, **settings)
    data = synthesize(Cramped(tiny_network, 99, 16, MemoryError()), tiny_spec, **settings)
    torch.testing.assert_close(data[3].outputs, expected[3].outputs)
    assert data.manifest.divergence == pytest.approx(expected.manifest.divergence, rel=1e-4)
    assert [text.partition(":")[0] for text in warnings_in(caplog)] == ["Out of memory for a batch of 20 samples"]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_halves_that_do_not_fit_either_end_with_the_next_step(
    tiny_network: nn.Module, tiny_spec: InputSpec, tmp_path: Path, error: Exception
) -> None:
    message = (
        r"Out of memory for a shard of 48 samples, even in two halves \(.+\)\. Give a batch size well "
        r"below 48; finished shards are kept and remain valid\."
    )
    with pytest.raises(UsageError, match=message):
        synthesize(
            Cramped(tiny_network, 20, 48, error),
            tiny_spec,
            num_samples=48,
            batch_size=48,
            options=QUICK,
            output=tmp_path / "out",
        )


def test_other_errors_of_the_model_are_its_own(tiny_network: nn.Module, tiny_spec: InputSpec) -> None:
    with pytest.raises(RuntimeError, match=r"^broken"):
        synthesize(Cramped(tiny_network, 20, 48, RuntimeError("broken")), tiny_spec, num_samples=48, options=QUICK)


def test_failing_compiler_that_lacks_memory_is_not_blamed(
    tiny_network: nn.Module, tiny_spec: InputSpec, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    synthesize(
        Cramped(tiny_network, 24, 48, MemoryError()),
        tiny_spec,
        num_samples=48,
        batch_size=48,
        options={**QUICK, "compile": "always"},
    )
    assert len(warnings_in(caplog)) == 1
    assert "two halves" in warnings_in(caplog)[0]


def live_bytes() -> int:
    gc.collect()
    # A compiled step's cache holds fake tensors, which have no bytes: they are subclasses.
    tensors = [item for item in gc.get_objects() if type(item) in (torch.Tensor, nn.Parameter)]
    return sum(tensor.nbytes for tensor in tensors)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_samples(tiny_network: nn.Module, tiny_spec: InputSpec) -> None:
    def peak(shards: int) -> int:
        seen: list[int] = []
        synthesize(
            tiny_network,
            tiny_spec,
            num_samples=64 * shards,
            batch_size=64,
            options={**QUICK, "iterations": 2},
            listeners=[lambda _: seen.append(live_bytes())],
        )
        assert len(seen) == 2 * shards
        return max(seen)

    peak(1)
    assert peak(12) <= 1.02 * peak(2)


UNUSABLE = """
import logging, sys
import torch
from torch import nn
logging.basicConfig(format="%(levelname)s %(message)s", stream=sys.stdout)
from dfq_plugins import InputSpec, synthesize
network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, momentum=1.0), nn.Flatten(), nn.Linear(8, 2))
network(torch.randn(64, 1, 4, 4))
options = {"iterations": 2, "precision": "float32", "compile": "always"}
data = synthesize(network.eval(), InputSpec((1, 4, 4)), num_samples=8, batch_size=4, options=options)
print(len(data), "samples")
"""


def run_alone(tmp_path: Path, **environment: str) -> list[str]:
    """Run in a new process, for torch remembers the compiler that it has found."""
    known = {name: value for name, value in os.environ.items() if name not in {"CXX", CACHE_VARIABLE}}
    variables = {**known, CACHE_VARIABLE: str(tmp_path / "cache"), **environment}
    done = subprocess.run(
        [sys.executable, "-c", UNUSABLE], env=variables, capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{"CXX": "no-such-compiler"}, {"PATH": "/nonexistent"}], ids=["CXX", "PATH"])
def test_missing_compiler_is_noted_once_and_the_run_goes_on(tmp_path: Path, environment: dict[str, str]) -> None:
    note, *rest = run_alone(tmp_path, **environment)
    assert note.startswith("WARNING Compilation failed (InductorError: InvalidCxxCompiler: No working C++ compiler")
    assert note.endswith("Install a C++ compiler (g++ or clang++), name it in CXX, or set compile=never.")
    assert rest == ["8 samples"]


@pytest.mark.slow
def test_cache_folder_that_cannot_be_written_is_replaced_with_a_note(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    note, *rest = run_alone(tmp_path, TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "file" / "cache"), CXX="no-such-compiler")
    assert note == (
        f"WARNING The compile cache {tmp_path / 'file' / 'cache'} is not writable (Not a directory), so "
        "compiled code is kept only for this run. Point TORCHINDUCTOR_CACHE_DIR to a writable folder."
    )
    assert rest[-1] == "8 samples"


def test_cache_folder_is_left_alone_where_it_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    with writable_compile_cache():
        assert os.environ[CACHE_VARIABLE] == str(tmp_path / "cache")
    assert [*(tmp_path / "cache").iterdir()] == []
    (tmp_path / "file").touch()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(KeyError), writable_compile_cache():  # noqa: PT012
        folder = Path(os.environ[CACHE_VARIABLE])
        assert folder.is_dir()
        raise KeyError
    assert os.environ[CACHE_VARIABLE] == str(tmp_path / "file")
    assert not folder.exists()
    assert "is not writable (" in caplog.text


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (RuntimeError("x\ny"), "Set compile=never to skip compilation."),
        (PermissionError(13, "Permission denied"), "Point TORCHINDUCTOR_CACHE_DIR to a writable folder"),
        (RuntimeError("OSError: [Errno 28] No space left"), "Point TORCHINDUCTOR_CACHE_DIR to a writable"),
    ],
)
def test_failed_compilation_is_explained_in_one_line(error: Exception, remedy: str) -> None:
    text = explained_failure(error)
    assert text.startswith(f"Compilation failed ({type(error).__name__}: ")
    assert "); continuing uncompiled, more slowly. " in text
    assert remedy in text
    assert "\n" not in text
