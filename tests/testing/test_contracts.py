"""The published contracts: every built-in keeps them, and each test of theirs catches a plugin broken on purpose."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from contract_plugins import (
    BROKEN_CALIBRATORS,
    BROKEN_GENERATORS,
    BROKEN_LEARNERS,
    Anything,
    Greedy,
    Nudging,
    Patching,
    Rounding,
    Stubborn,
    Uniform,
)
from dfq_plugins.host.registry import get_registry
from dfq_plugins.testing import CalibratorContract, GeneratorContract, LearningGeneratorContract
from dfq_plugins.testing.check import run_contract

QUICK = {"iterations": 2, "start": "white", "compile": "never"}
LINEAR = nn.Linear


class TestUniform(GeneratorContract):
    @pytest.fixture
    def generator(self) -> Any:
        return Uniform()


class TestBuiltInGenerators(GeneratorContract):
    @pytest.fixture(params=["gaussian", "inception", "bns", "bns+inception"])
    def generator(self, request: pytest.FixtureRequest) -> Any:
        options = {} if request.param == "gaussian" else QUICK
        return get_registry().create("generator", request.param, options)


class TestGdfq(GeneratorContract):
    @pytest.fixture
    def generator(self) -> Any:
        return get_registry().create("generator", "gdfq", {"iterations": 2, "step_samples": 8, "width": 8})


class TestNudging(LearningGeneratorContract):
    @pytest.fixture
    def generator(self) -> Any:
        return Nudging()


class TestBuiltInLearningGenerators(LearningGeneratorContract):
    @pytest.fixture(params=[("adversarial", {}), ("adversarial", {"distance": "symmetrized-kl"}), ("gdfq", {})])
    def generator(self, request: pytest.FixtureRequest) -> Any:
        name, options = request.param
        return get_registry().create("learning generator", name, {"width": 8, "warm_up": 2, **options})


class TestThePapersPreset(LearningGeneratorContract):
    @pytest.fixture
    def generator(self) -> Any:
        return get_registry().create("learning generator", "adversarial", {"preset": "zhu2020", "width": 8})

    def test_inputs_stay_in_the_valid_range(self) -> None:  # type: ignore[override]
        pytest.skip("the paper's generator ends in BatchNorm, whose output has no bounds")


class TestRounding(CalibratorContract):
    @pytest.fixture
    def calibrator(self) -> Any:
        return Rounding()


@pytest.mark.slow
class TestAdapters(CalibratorContract):
    @pytest.fixture(params=["torch-ao", "torchao", "pytorch-quantization", "brevitas"])
    def calibrator(self, request: pytest.FixtureRequest) -> Any:
        return get_registry().create("calibrator", request.param)


def failed_names(kind: Any, build: Any, only: str) -> set[str]:
    return {name.partition("[")[0] for name in run_contract(kind, build, only=only).failed}


@pytest.mark.slow
@pytest.mark.parametrize(("broken", "test"), BROKEN_GENERATORS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_broken_generator_is_caught(broken: type[Uniform], test: str) -> None:
    assert failed_names("generator", broken, test) == {test}


@pytest.mark.slow
@pytest.mark.parametrize(("broken", "test"), BROKEN_LEARNERS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_broken_learning_generator_is_caught(broken: type[Nudging], test: str) -> None:
    assert failed_names("learning generator", broken, test) == {test}


@pytest.mark.slow
@pytest.mark.parametrize(("broken", "test"), BROKEN_CALIBRATORS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_broken_calibrator_is_caught(broken: type[Rounding], test: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if broken is Patching:
        monkeypatch.setattr(nn, "Linear", nn.Linear)
    assert failed_names("calibrator", broken, test) == {test}


@pytest.mark.parametrize(
    ("contract", "broken"),
    [
        (GeneratorContract, BROKEN_GENERATORS),
        (LearningGeneratorContract, BROKEN_LEARNERS),
        (CalibratorContract, BROKEN_CALIBRATORS),
    ],
)
def test_every_test_of_a_contract_has_a_plugin_that_breaks_it(contract: type, broken: list[tuple[type, str]]) -> None:
    assert {name for name in dir(contract) if name.startswith("test_")} == {test for _, test in broken}


@pytest.mark.slow
def test_a_failure_says_rule_value_and_next_step() -> None:
    (reason,) = run_contract("generator", Greedy, only="larger").failed.values()
    assert reason == "Batches must have at most batch_size=4 samples, got [10]. Split larger batches."
    (reason,) = run_contract("learning generator", Stubborn, only="it_learns").failed.values()
    assert reason.startswith("Batches must change during training, but all 12 are the same. Learn in feedback()")
    (reason,) = run_contract("calibrator", Anything, only="recipe").failed.values()
    assert reason == (
        "prepare() for w1a1 must raise a UsageError from dfq_plugins.errors that says what to do instead, "
        "but it was accepted."
    )


@pytest.mark.slow
def test_a_plugin_that_cannot_be_built_fails_every_test() -> None:
    def build() -> object:
        raise RuntimeError("no weights on disk")

    result = run_contract("generator", build, only="finite or seed")
    assert not result.passed
    assert set(result.failed.values()) == {"RuntimeError: no weights on disk"}


def test_a_contract_without_its_fixture_says_so() -> None:
    with pytest.raises(NotImplementedError, match="GeneratorContract needs a fixture 'generator'"):
        GeneratorContract.generator.__wrapped__(GeneratorContract())  # type: ignore[attr-defined]
    with pytest.raises(NotImplementedError, match="LearningGeneratorContract needs a fixture 'generator'"):
        LearningGeneratorContract.generator.__wrapped__(LearningGeneratorContract())  # type: ignore[attr-defined]
    with pytest.raises(NotImplementedError, match="CalibratorContract needs a fixture 'calibrator'"):
        CalibratorContract.calibrator.__wrapped__(CalibratorContract())  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_check_leaves_the_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_ADDOPTS", "--no-such-option")
    before = torch.get_rng_state()
    assert run_contract("generator", Uniform, only="seed").failed == {}
    import os

    assert os.environ["PYTEST_ADDOPTS"] == "--no-such-option"
    assert torch.equal(before, torch.get_rng_state())
    assert nn.Linear is LINEAR
