"""`distill` from end to end: what is learned, what is written, what is refused, and what stays as it was."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from dfq_plugins.distillation.options import DistillOptions
from dfq_plugins.distillation.run import DistillRun, LargerStudentWarning, distill
from dfq_plugins.distillation.state import capture
from dfq_plugins.errors import DataError, ModelError, UsageError
from dfq_plugins.network.load import load_network
from dfq_plugins.network.origin import DataOriginWarning
from dfq_plugins.pruning.ticket import Ticket
from dfq_plugins.synthesis.run import synthesize

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dfq_plugins.host.registry import Registry
    from dfq_plugins.types import InputSpec, ProgressEvent

QUICK = {"steps": 60, "batch_size": 16, "num_evaluations": 3, "learning_rate": 0.02, "teacher_precision": "float32"}


def student(width: int = 6, classes: int = 4) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers = [
            nn.Conv2d(3, width, 3, stride=2),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        ]
        return nn.Sequential(*layers, nn.Linear(width, classes))


@pytest.fixture
def registry(finetuning_registry: Registry) -> Registry:
    return finetuning_registry


@pytest.fixture
def inputs() -> torch.Tensor:
    return torch.randn(200, 3, 8, 8, generator=torch.Generator().manual_seed(3)).clamp(-2, 2)


@pytest.fixture
def run(
    registry: Registry, tiny_network: nn.Module, tiny_spec: InputSpec, inputs: torch.Tensor
) -> Callable[..., DistillRun]:
    """Distil the tiny network into a smaller one in a few steps, where nothing else is given."""

    def distilled(model: nn.Module | None = None, data: Any = inputs, **settings: Any) -> DistillRun:
        settings["training"] = {**QUICK, **settings.pop("training", {})}
        settings = {"spec": tiny_spec, "registry": registry, **settings}
        return distill(settings.pop("teacher", tiny_network), student() if model is None else model, data, **settings)

    return distilled


def test_it_learns_and_tells_everything(run: Callable[..., DistillRun], tmp_path: Path) -> None:
    events: list[ProgressEvent] = []
    result = run(output=tmp_path / "out", factory="nets.py:student", listeners=[events.append])
    assert result.history[-1].held_out_loss < 0.7 * result.history[0].held_out_loss
    assert result.agreement > result.agreement_before
    assert [point.step for point in result.history] == [0, 20, 40, 60]
    assert {event.stage for event in events} == {"distill"}
    assert result.student_cost.parameters == 208 < result.teacher_cost.parameters
    assert result.student_cost.macs == 6 * 27 * 9 + 24
    assert (result.training.batch_norm, result.training.learning_rate_unit) == ("reestimated", "absolute")
    record = json.loads((tmp_path / "out" / "network.json").read_text())
    assert record["settings"]["steps"] == 60
    assert [point["step"] for point in record["history"]] == [0, 20, 40, 60]
    assert {"python", "torch", "dfq-plugins"} <= set(record["versions"])
    assert (record["kind"], record["teacher"]["parameters"]) == ("distilled", result.teacher_cost.parameters)
    found = load_network(tmp_path / "out", student())
    probe = torch.randn(5, 3, 8, 8)
    assert torch.equal(found(probe), result.model(probe))


def test_networks_and_process_stay_as_they_were(run: Callable[..., DistillRun], tiny_network: nn.Module) -> None:
    given = student().train()
    before, random = [capture(network) for network in (tiny_network, given)], torch.random.get_rng_state()
    run(given)
    for network, state in zip((tiny_network, given), before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in capture(network).items())
    assert given.training
    assert torch.equal(torch.random.get_rng_state(), random)


def test_frozen_parameters_stay_frozen(run: Callable[..., DistillRun]) -> None:
    given = student()
    given[0].weight.requires_grad_(requires_grad=False)  # type: ignore[index, operator, union-attr]
    result = run(given)
    assert torch.equal(result.model[0].weight, given[0].weight)  # type: ignore[index]
    with pytest.raises(ModelError, match="needs trainable parameters"):
        run(given.requires_grad_(requires_grad=False))


def test_a_run_that_was_interrupted_goes_on(run: Callable[..., DistillRun], tmp_path: Path) -> None:
    whole = run()

    def interrupt(event: ProgressEvent) -> None:
        if event.completed == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(work=tmp_path, listeners=[interrupt])
    resumed = run(work=tmp_path)
    assert all(torch.equal(value, capture(whole.model)[name]) for name, value in capture(resumed.model).items())
    with pytest.raises(DataError, match="checkpoint of another run"):
        run(student(5), work=tmp_path)


class TestInputs:
    def test_a_generator_by_its_name(self, run: Callable[..., DistillRun], tmp_path: Path) -> None:
        result = run(data=None, generator="noise", num_samples=40, work=tmp_path)
        assert result.held_out == 4
        assert (tmp_path / "inputs" / "manifest.json").is_file()
        assert run(data=None, generator="noise", num_samples=40, work=tmp_path).history == result.history

    def test_a_generator_that_learns(self, run: Callable[..., DistillRun]) -> None:
        result = run(generator="seeker")
        assert result.history[-1].held_out_loss < result.history[0].held_out_loss

    def test_a_generator_that_learns_needs_no_data(
        self, run: Callable[..., DistillRun], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from dfq_plugins.distillation import inputs as lesson_inputs

        monkeypatch.setattr(lesson_inputs, "DEFAULT_GENERATOR", "noise")
        monkeypatch.setattr(lesson_inputs, "SELECTION_SAMPLES", 30)
        assert run(data=None, generator="seeker", training={"steps": 4}).held_out == 3

    def test_data_of_another_model(
        self, run: Callable[..., DistillRun], registry: Registry, tiny_network: nn.Module, tiny_spec: InputSpec
    ) -> None:
        data = synthesize(tiny_network, tiny_spec, generator="noise", num_samples=40, registry=registry)
        assert run(data=data, spec=None).held_out == 4
        with torch.no_grad():
            tiny_network.linear.bias.add_(1.0)  # type: ignore[union-attr, operator]
        with pytest.warns(DataOriginWarning, match="was made from another model"):
            run(data=data, spec=None, allow_other_network=True)
        with pytest.raises(DataError, match="was made from another model"):
            run(data=data, spec=None)

    def test_neither(self, run: Callable[..., DistillRun]) -> None:
        with pytest.raises(UsageError, match="Training a student needs inputs: give data, or the name of a generator"):
            run(data=None)


def test_a_student_larger_than_its_teacher(run: Callable[..., DistillRun]) -> None:
    with pytest.warns(
        LargerStudentWarning, match=r"1,704 parameters against \d+\. It can learn no more than the teacher"
    ):
        run(student(50), training={"steps": 1})


def test_another_number_of_classes(run: Callable[..., DistillRun]) -> None:
    with pytest.raises(ModelError, match=r"got \(4,\) values per sample from the teacher and \(3,\) from the student"):
        run(student(classes=3))


def test_a_ticket_is_trained_from_its_first_weights(run: Callable[..., DistillRun], tiny_network: nn.Module) -> None:
    ticket = Ticket.find(student(), student(), 0.5)
    result = run(student(), ticket=ticket)
    for name, mask in ticket.masks.items():
        assert not result.model.get_parameter(name)[~mask].any()
    assert result.student_cost.nonzero < result.student_cost.parameters
    with pytest.raises(DataError, match="The ticket belongs to another model"):
        run(tiny_network, ticket=ticket)


def test_a_limit_of_time_ends_it(run: Callable[..., DistillRun]) -> None:
    result = run(training={"steps": 1_000_000, "max_seconds": 0.5, "num_evaluations": 2})
    assert result.history[-1].step < 1_000_000


def test_the_defaults_differ_from_those_of_finetuning() -> None:
    settings = DistillOptions()
    assert (settings.batch_norm, settings.learning_rate_unit, settings.steps) == ("reestimated", "absolute", 5000)
