"""A calibrator that can be trained, and generators that learn, as an outside plugin would bring them."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dfq_plugins.hookspecs import hookimpl
from dfq_plugins.types import (
    Artifact,
    Batch,
    Calibrator,
    CalibratorEntry,
    Coverage,
    DataGenerator,
    GeneratorEntry,
    InputSpec,
    LearningGenerator,
    LearningGeneratorEntry,
    NoOptions,
    NumberFormat,
    QuantizedTensor,
    Recipe,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from torch import Tensor


class Coarse(Calibrator):
    """Rounds weights to quarters: a student that starts away from its teacher."""

    last: Coarse

    def __init__(self, _options: NoOptions) -> None:
        self.frozen = 0
        Coarse.last = self

    def prepare(self, model: nn.Module, spec: InputSpec, recipe: Recipe, *, training: bool) -> nn.Module:
        self.given = (spec, recipe, training)
        return copy.deepcopy(model)

    def calibrate(self, prepared: nn.Module, batches: Iterable[Tensor]) -> None:
        self.seen = torch.cat(list(batches))
        with torch.no_grad():
            for parameter in prepared.parameters():
                parameter.copy_((parameter * 4).round() / 4)
        prepared.requires_grad_(True)

    def scale_parameters(self, prepared: nn.Module) -> list[nn.Parameter]:
        return [prepared.linear.bias]

    def freeze_ranges(self, _prepared: nn.Module) -> None:
        self.frozen += 1

    def convert(self, prepared: nn.Module) -> nn.Module:
        return prepared

    def describe(self, _converted: nn.Module) -> Coverage:
        coarse = NumberFormat(2, signed=True, symmetric=True, per_channel=False, stored_bits=8)
        return Coverage((QuantizedTensor("stem", "Conv2d", "weight", coarse),))

    def export(self, _converted: nn.Module, _spec: InputSpec, path: Path) -> tuple[Artifact, ...]:
        path.mkdir(parents=True, exist_ok=True)
        (path / "model.bin").write_bytes(b"1234")
        return (Artifact(path / "model.bin", "fake", 4, ()),)


class Untrainable(Coarse):
    """Its parameters take no gradients."""

    def calibrate(self, prepared: nn.Module, batches: Iterable[Tensor]) -> None:
        super().calibrate(prepared, batches)
        prepared.requires_grad_(False)


class Narrow(Coarse):
    """Returns other outputs than the teacher."""

    def prepare(self, model: nn.Module, spec: InputSpec, recipe: Recipe, *, training: bool) -> nn.Module:
        prepared = super().prepare(model, spec, recipe, training=training)
        prepared.linear = nn.Linear(8, 3)
        return prepared


class Seeker(LearningGenerator):
    """Moves a batch of noise up the disagreement of student and teacher, once in three steps."""

    size_off_by = 0

    def __init__(self, _options: NoOptions) -> None:
        self.feedbacks = 0

    def begin(self, teacher: nn.Module, spec: InputSpec, rng: torch.Generator) -> None:
        self.teacher, self.shape, self.rng = teacher, spec.shape, rng
        self.inputs = torch.zeros(0, *spec.shape)

    def feedback(self, student: nn.Module) -> None:
        self.feedbacks += 1
        if self.feedbacks % 3 == 1 and len(self.inputs):
            inputs = self.inputs.requires_grad_()
            distance = (student(inputs) - self.teacher(inputs)).square().mean()
            (gradient,) = torch.autograd.grad(distance, inputs)
            distance = (student(inputs) - self.teacher(inputs)).square().mean()
            distance.backward()  # leaves gradients on the student, which the loop must clear
            noise = torch.randn(inputs.shape, generator=self.rng)
            self.inputs = (inputs.detach() + 0.1 * gradient.sign() + 0.01 * noise).clamp(-2, 2)

    def batch(self, size: int) -> Batch:
        if len(self.inputs) != size:
            self.inputs = torch.randn(size, *self.shape, generator=self.rng).clamp(-2, 2)
        return Batch(self.inputs[self.size_off_by :].detach().clone())

    def state(self) -> Mapping[str, Tensor]:
        return {"inputs": self.inputs.detach(), "feedbacks": torch.tensor(self.feedbacks)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.inputs, self.feedbacks = state["inputs"].clone(), int(state["feedbacks"])


class ShortSeeker(Seeker):
    """Makes one sample less than asked for."""

    size_off_by = 1


class Both(Seeker, DataGenerator):
    """Makes data sets as well."""

    def generate(
        self, _model: nn.Module, spec: InputSpec, *, num_samples: int, rng: torch.Generator, **_: Any
    ) -> Iterator[Batch]:
        yield Batch(torch.randn(num_samples, *spec.shape, generator=rng).clamp(-2, 2))


class Idle(LearningGenerator):
    """Lacks what a learning generator needs."""

    def __init__(self, _options: NoOptions) -> None: ...

    def begin(self, *_: Any) -> None: ...


class Noise(DataGenerator):
    """A generator of the usual kind."""

    def __init__(self, _options: NoOptions) -> None: ...

    def generate(
        self, _model: nn.Module, spec: InputSpec, *, num_samples: int, rng: torch.Generator, **_: Any
    ) -> Iterator[Batch]:
        yield Batch(torch.randn(num_samples, *spec.shape, generator=rng).clamp(-2, 2))


@hookimpl
def dfq_generators() -> Iterator[GeneratorEntry]:
    for name, kind in (("both", Both), ("promised", Seeker), ("noise", Noise)):
        yield GeneratorEntry(name, "", f"{__name__}:{kind.__name__}")


@hookimpl
def dfq_learning_generators() -> Iterator[LearningGeneratorEntry]:
    for kind in (Seeker, ShortSeeker, Idle, Both):
        yield LearningGeneratorEntry(kind.__name__.lower(), "", f"{__name__}:{kind.__name__}")


@hookimpl
def dfq_calibrators() -> Iterator[CalibratorEntry]:
    for kind in (Coarse, Untrainable, Narrow):
        yield CalibratorEntry(kind.__name__.lower(), "", f"{__name__}:{kind.__name__}")
