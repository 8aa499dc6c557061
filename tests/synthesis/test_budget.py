"""A budget of time: exact samples whatever it holds, a schedule that ends inside it, and a manifest that tells."""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch
from click.testing import CliRunner

from dfq_plugins.cli import cli, progress
from dfq_plugins.data.dataset import SyntheticDataset
from dfq_plugins.errors import DataError, UsageError
from dfq_plugins.generators import inversion as base
from dfq_plugins.generators.options import BatchNormOptions
from dfq_plugins.synthesis import loop as optimization
from dfq_plugins.synthesis import objective as inversion
from dfq_plugins.synthesis import shard_maker as synthesis
from dfq_plugins.synthesis.budget import RunBudget
from dfq_plugins.synthesis.compilation import compiled_before, remember_compiled
from dfq_plugins.synthesis.compile_choice import compile_pays_within
from dfq_plugins.synthesis.loop import learning_rate_at
from dfq_plugins.synthesis.objective import InversionObjective
from dfq_plugins.synthesis.run import synthesize
from dfq_plugins.synthesis.schedule import FEWEST_STEPS, StepSchedule, TimedSchedule
from dfq_plugins.types import TimeBudget

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

    from dfq_plugins.types import InputSpec, ProgressEvent

QUICK = {"precision": "float32", "compile": "never"}


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def walk(pace: StepSchedule, clock: Clock, seconds: Callable[[int], float]) -> list[float]:
    """Take all steps of a pace, step `i` taking `seconds(i)`; return the progress at the start of each."""
    progresses = []
    while not pace.finished:
        progresses.append(pace.progress)
        clock.now += seconds(pace.done)
        pace.advance()
        pace.measure()
    return progresses


def test_fixed_pace_divides_the_schedule_evenly() -> None:
    assert walk(StepSchedule(5), Clock(), lambda _: 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8]


def test_timed_pace_fills_its_time_with_a_whole_schedule() -> None:
    clock = Clock()
    pace = TimedSchedule(50.5, most=300, clock=clock)
    progresses = walk(pace, clock, lambda _: 1.0)
    assert len(progresses) == pace.done == 50
    assert clock.now <= 1050.5
    assert progresses == sorted(progresses)
    assert progresses[0] == 0
    assert 0.95 < progresses[-1] < 1
    assert pace.progress == pytest.approx(1)
    steps = [after - before for before, after in itertools.pairwise(progresses[2:])]
    assert max(steps) == pytest.approx(min(steps))  # only the first two steps were taken on a guess


def test_timed_pace_does_not_mistake_compilation_for_a_step() -> None:
    clock = Clock()
    assert len(walk(TimedSchedule(100, most=300, clock=clock), clock, lambda step: 50.0 if step == 0 else 1.0)) == 51


def test_timed_pace_ends_its_schedule_in_time_on_a_machine_that_slows_down() -> None:
    clock = Clock()
    progresses = walk(TimedSchedule(100, most=300, clock=clock), clock, lambda step: 1.0 if step < 30 else 3.0)
    assert clock.now <= 1103
    assert 40 < len(progresses) < 60
    assert learning_rate_at(progresses[-1], BatchNormOptions(learning_rate=1.0)) < 0.03


def test_timed_pace_takes_no_more_steps_than_help_and_no_fewer_than_change_anything() -> None:
    for seconds, expected in ((1e6, 300), (0.0, FEWEST_STEPS)):
        clock = Clock()
        assert len(walk(TimedSchedule(seconds, most=300, clock=clock), clock, lambda _: 1.0)) == expected
    clock = Clock()
    assert len(walk(TimedSchedule(0.0, most=4, clock=clock), clock, lambda _: 1.0)) == 4  # the user's own number


def test_steps_that_take_no_time_are_made_up_to_the_most() -> None:
    clock = Clock()
    assert len(walk(TimedSchedule(1.0, most=30, clock=clock), clock, lambda _: 0.0)) == 30


@pytest.mark.parametrize(("ahead", "processes", "expected"), [(1000, 1, 9.0), (1000, 4, 36.0), (100, 4, 90.0)])
def test_time_is_shared_by_samples_among_those_who_make_them(ahead: int, processes: int, expected: float) -> None:
    clock = Clock()
    budget = RunBudget(110, clock)
    clock.now += 10
    shard_budget = budget.allow(samples=100, ahead=ahead, processes=processes, reserve=10)
    assert (shard_budget.seconds, shard_budget.run_seconds) == (expected, 90.0)
    clock.now += 200
    assert budget.left == -100
    assert budget.allow(samples=100, ahead=ahead, processes=processes, reserve=0).seconds == 0


def test_budget_without_time_is_refused(tiny_network: nn.Module, tiny_spec: InputSpec) -> None:
    for seconds in (0, -1.0):
        with pytest.raises(UsageError, match=rf"max_seconds must be greater than 0, got {seconds}\."):
            synthesize(tiny_network, tiny_spec, max_seconds=seconds)


def run(network: nn.Module, spec: InputSpec, **settings: Any) -> SyntheticDataset:
    settings["options"] = {**QUICK, **settings.get("options", {})}
    return synthesize(network, spec, **{"num_samples": 40, "batch_size": 16, **settings})


@pytest.mark.slow
def test_set_made_in_a_budget_is_whole_and_says_what_it_took(
    tiny_network: nn.Module, tiny_spec: InputSpec, tmp_path: Path
) -> None:
    began = time.monotonic()
    data = run(tiny_network, tiny_spec, max_seconds=5, output=tmp_path)
    seconds = time.monotonic() - began
    assert len(data) == 40
    counts = [shard.iterations for shard in data.manifest.shards]
    assert len(counts) == 3
    assert all(FEWEST_STEPS <= count <= 100 for count in counts)
    assert seconds < 6 or min(counts) == FEWEST_STEPS
    written = json.loads((tmp_path / "manifest.json").read_text())
    assert written["max_seconds"] == 5
    assert [shard["iterations"] for shard in written["shards"]] == counts


def test_set_without_a_budget_says_nothing_of_one(
    tiny_network: nn.Module, tiny_spec: InputSpec, tmp_path: Path
) -> None:
    data = run(tiny_network, tiny_spec, options={"iterations": 2}, output=tmp_path)
    text = (tmp_path / "manifest.json").read_text()
    assert "max_seconds" not in text
    assert '"iterations": 2' in text  # the option
    assert [shard.iterations for shard in data.manifest.shards] == [None] * 3
    assert "budgeted" not in data.manifest.settings.as_json()


def test_ample_budget_buys_the_default_or_the_number_given_and_no_more(
    tiny_network: nn.Module, tiny_spec: InputSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BatchNormOptions, "iterations", 4)
    monkeypatch.setattr(BatchNormOptions.__init__, "__defaults__", (4, *BatchNormOptions.__init__.__defaults__[1:]))
    for given, expected in (({}, 4), ({"iterations": 7}, 7)):
        data = run(tiny_network, tiny_spec, num_samples=8, max_seconds=500, options=given)
        assert [shard.iterations for shard in data.manifest.shards] == [expected]


def test_budget_that_is_too_small_is_overrun_with_a_note(
    tiny_network: nn.Module, tiny_spec: InputSpec, caplog: pytest.LogCaptureFixture
) -> None:
    data = run(tiny_network, tiny_spec, max_seconds=0.001)
    assert [shard.iterations for shard in data.manifest.shards] == [FEWEST_STEPS] * 3
    assert len(data) == 40
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert re.fullmatch(
        r"40 samples took \d+ s, more than the budget of 0 s, with as few as 10 iterations\. Allow more time, or "
        r"request fewer samples\.",
        record.getMessage(),
    )


def test_run_in_a_budget_is_resumed_in_another_but_never_mixed_with_one_without(
    tiny_network: nn.Module, tiny_spec: InputSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(synthesis, "best_divergences", lambda *_: raise_(RuntimeError("stopped")))
        with pytest.raises(RuntimeError, match="stopped"):
            run(tiny_network, tiny_spec, max_seconds=0.5, output=tmp_path)
    first = (tmp_path / "shard-00000.safetensors").read_bytes()
    (tmp_path / "shard-00001.safetensors").unlink()
    with pytest.raises(DataError, match=r"other settings .*budgeted is True, requested None"):
        run(tiny_network, tiny_spec, output=tmp_path)
    data = run(tiny_network, tiny_spec, max_seconds=0.7, output=tmp_path)
    assert data.manifest.max_seconds == 0.7
    assert all(shard.iterations for shard in data.manifest.shards)
    assert (tmp_path / "shard-00000.safetensors").read_bytes() == first
    data = run(tiny_network, tiny_spec, max_seconds=0.9, output=tmp_path, num_samples=60)
    assert [shard.num_samples for shard in data.manifest.shards] == [16, 16, 8, 16, 4]
    with pytest.raises(DataError, match="budgeted is True"):
        run(tiny_network, tiny_spec, output=tmp_path, num_samples=60)


def raise_(error: Exception) -> None:
    raise error


@pytest.mark.slow
def test_wall_clock_that_jumps_changes_nothing(
    tiny_network: nn.Module, tiny_spec: InputSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    jumps = iter(range(0, 10**9, 86_400))
    monkeypatch.setattr(time, "time", lambda: -next(jumps))
    began = time.monotonic()
    data = run(tiny_network, tiny_spec, max_seconds=2)
    assert len(data) == 40
    assert min(shard.iterations for shard in data.manifest.shards) > FEWEST_STEPS or time.monotonic() - began > 2
    monkeypatch.undo()
    plain = [run(tiny_network, tiny_spec, options={"iterations": 3}).inputs()]
    monkeypatch.setattr(time, "time", lambda: -next(jumps))
    plain.append(run(tiny_network, tiny_spec, options={"iterations": 3}).inputs())
    assert torch.equal(*plain)


def test_generator_that_keeps_to_no_time_is_refused(
    tiny_network: nn.Module, tiny_spec: InputSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfq_plugins.generators.gaussian.GaussianGenerator.timed", False)
    with pytest.raises(
        UsageError, match=r"max_seconds needs a generator that supports a time budget, but the generator"
    ):
        synthesize(tiny_network, tiny_spec, generator="gaussian", max_seconds=5, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_noise_keeps_to_any_time(tiny_network: nn.Module, tiny_spec: InputSpec) -> None:
    data = synthesize(tiny_network, tiny_spec, generator="gaussian", max_seconds=60, num_samples=8)
    assert [shard.iterations for shard in data.manifest.shards] == [None]


@pytest.mark.parametrize(
    ("run_seconds", "shard_seconds", "step_seconds", "expected"),
    [
        (1000, 100, 1.0, True),  # plain steps reach 100 of the 300 that help
        (1000, 400, 1.0, False),  # they reach all
        (20, 20, 1.0, False),  # compilation would take half of the time
    ],
)
def test_compilation_must_fit_into_the_budget_and_be_needed(
    tiny_network: nn.Module,
    tiny_spec: InputSpec,
    run_seconds: float,
    shard_seconds: float,
    step_seconds: float,
    expected: bool,
) -> None:
    objective = InversionObjective(tiny_network, tiny_spec, BatchNormOptions())
    objective._step_seconds = step_seconds
    batch, labels = torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.long)
    shard_budget = TimeBudget(shard_seconds, run_seconds)
    assert compile_pays_within(shard_budget, 300, objective, batch, labels) is expected


def test_what_was_compiled_before_costs_little(
    tiny_network: nn.Module, tiny_spec: InputSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    objective = InversionObjective(tiny_network, tiny_spec, BatchNormOptions())
    objective._step_seconds = 1.0
    batch, labels = torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.long)
    arguments = (TimeBudget(20, 20), 300, objective, batch, labels)
    assert not compile_pays_within(*arguments)
    remember_compiled(objective.description(batch))
    assert compile_pays_within(*arguments)
    assert not compile_pays_within(*arguments[:3], batch[:1], labels[:1])  # another shape is other code


def test_any_run_that_compiles_is_remembered(
    tiny_network: nn.Module, tiny_spec: InputSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    objective = InversionObjective(tiny_network, tiny_spec, BatchNormOptions())
    batch, labels = torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.long)
    objective(batch, labels, None)
    assert not compiled_before(objective.description(batch))
    objective.use_compiled(wanted=True)
    objective(batch, labels, None)
    assert compiled_before(objective.description(batch))


def test_nothing_is_remembered_where_the_cache_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "nowhere"))
    remember_compiled("a step")
    assert not compiled_before("a step")


def test_fewer_steps_take_a_smaller_learning_rate() -> None:
    clock = Clock()
    short, long = (TimedSchedule(seconds, most=300, clock=clock, usual=100) for seconds in (25.5, 250.5))
    assert short.rate == long.rate == FEWEST_STEPS / 100
    walk(short, clock, lambda _: 1.0)
    assert 0.2 < short.rate < 0.3
    clock.now = 0.0
    walk(TimedSchedule(250.5, most=300, clock=clock), clock, lambda _: 1.0)
    assert StepSchedule(25).rate == TimedSchedule(1.0, most=30, clock=clock).rate == 1.0


def test_preparation_is_charged_to_the_whole_run_and_not_to_its_first_shard(
    tiny_network: nn.Module, tiny_spec: InputSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert TimeBudget(10.0, 100.0).after(50.0) == 5.0
    assert TimeBudget(10.0, 100.0).after(200.0) == TimeBudget(0.0, 0.0).after(1.0) == 0.0
    clock = Clock()
    for module in (base, inversion, optimization):
        monkeypatch.setattr(module.time, "monotonic", clock)
    step, seconds = InversionObjective.__call__, iter([30.0])

    def slow_at_first(*arguments: Any) -> Any:
        clock.now += next(seconds, 0.5)
        return step(*arguments)

    monkeypatch.setattr(InversionObjective, "__call__", slow_at_first)
    maker = base.InversionGenerator(BatchNormOptions(compile="never", precision="float32"))
    shard_budget, rng = TimeBudget(20.0, 120.0), torch.Generator().manual_seed(0)
    settings: dict[str, Any] = {"num_samples": 32, "batch_size": 32, "rng": rng, "report": lambda _: None}
    assert len(next(maker.generate(tiny_network, tiny_spec, budget=shard_budget, **settings)).inputs) == 32
    assert shard_budget.iterations == pytest.approx((20 - 30 / 6) / 0.5, abs=2)


def test_plain_step_is_timed_once(tiny_network: nn.Module, tiny_spec: InputSpec, monkeypatch: Any) -> None:
    objective = InversionObjective(tiny_network, tiny_spec, BatchNormOptions(precision="float32"))
    batch, labels = torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.long)
    seconds = objective.plain_step_seconds(batch, labels)
    assert seconds > 0
    monkeypatch.setattr(inversion, "_loss_and_gradient", None)
    assert objective.plain_step_seconds(batch, labels) == seconds


def test_threads_are_set_for_the_run_and_restored(tiny_network: nn.Module, tiny_spec: InputSpec) -> None:
    before = torch.get_num_threads()
    seen: list[int] = []
    listener = [lambda _: seen.append(torch.get_num_threads())]
    run(tiny_network, tiny_spec, num_samples=4, threads=3, options={"iterations": 1}, listeners=listener)
    assert set(seen) == {3}
    assert torch.get_num_threads() == before
    with pytest.raises(UsageError, match=r"threads must be at least 1, got 0\."):
        run(tiny_network, tiny_spec, threads=0)


def test_slow_steps_are_reported_before_the_next_look_at_the_loss(
    tiny_network: nn.Module, tiny_spec: InputSpec, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Steps of 8 seconds: the time that is left is known within the first minute, for a handful of samples too."""
    clock = Clock()
    monkeypatch.setattr(optimization.time, "monotonic", clock)
    step = InversionObjective.__call__

    def slow(*arguments: Any) -> Any:
        clock.now += 8
        return step(*arguments)

    monkeypatch.setattr(InversionObjective, "__call__", slow)
    lines = progress.PlainLines(clock=clock)
    moments: list[float] = []

    def listener(event: ProgressEvent) -> None:
        moments.append(clock.now - 1000)
        lines(event)

    run(tiny_network, tiny_spec, num_samples=2, options={"iterations": 30}, listeners=[listener])
    assert moments[:3] == [8, 16, 24]
    first, second = capsys.readouterr().err.splitlines()[:2]
    assert first.startswith("synthesize: 0 of 2, loss")
    assert second.endswith(", about 224 s left")


def test_command_line_counts_from_its_own_beginning(tmp_path: Path) -> None:
    (tmp_path / "network.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def build():\n"
        "    torch.manual_seed(0)\n"
        "    norm = nn.BatchNorm2d(1, momentum=1.0)\n"
        "    network = nn.Sequential(norm, nn.Flatten(), nn.Linear(16, 2))\n"
        "    network(torch.randn(64, 1, 4, 4))\n"
        "    return network.eval()\n"
    )
    arguments = [f"{tmp_path / 'network.py'}:build", "--shape", "1,4,4", "-n", "8", "-o", str(tmp_path / "out")]
    settings = ["--max-seconds", "3", "--threads", str(torch.get_num_threads()), "--device", "cpu", "--json"]
    result = CliRunner().invoke(cli, ["synthesize", *arguments, *settings])
    assert result.exit_code == 0, result.output
    assert FEWEST_STEPS <= json.loads(result.stdout)["iterations"][0] <= 300
    assert SyntheticDataset.open(tmp_path / "out").manifest.max_seconds == 3
    result = CliRunner().invoke(cli, ["synthesize", *arguments, "--device", "abacus"])
    assert result.exit_code == 2
    assert "--device abacus is not available (" in result.stderr
    assert "Choose cpu, or a GPU that torch can see." in result.stderr


def test_only_the_first_rank_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "network.py").write_text("from torch import nn\ndef build():\n    return nn.Flatten()\n")
    arguments = [f"{tmp_path / 'network.py'}:build", "--shape", "1,4,4", "-n", "8", "--generator", "gaussian"]
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "7"}.items():
        monkeypatch.setenv(name, value)
    for rank, quiet in (("1", True), ("0", False)):
        monkeypatch.setenv("RANK", rank)
        result = CliRunner().invoke(cli, ["synthesize", *arguments, "-o", str(tmp_path / f"out-{rank}")])
        assert result.exit_code == 0, result.output
        assert (result.output == "") is quiet
    assert os.environ["OMP_NUM_THREADS"] == "7"
