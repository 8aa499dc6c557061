"""Generators and calibrators of an outside plugin, well-behaved and not, for the tests of the pipeline."""

from __future__ import annotations

import copy
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dfq_plugins.hookspecs import hookimpl
from dfq_plugins.types import (
    Artifact,
    Batch,
    Calibrator,
    CalibratorEntry,
    Check,
    Coverage,
    DataGenerator,
    GeneratorEntry,
    InputSpec,
    NoOptions,
    NumberFormat,
    QuantizedTensor,
    Recipe,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from torch import Tensor, nn


class Noise(DataGenerator):
    """Yields standard noise of `rng`, one batch; subclasses misbehave."""

    keeps_range = False

    def __init__(self, _options: NoOptions) -> None: ...

    def generate(
        self, model: nn.Module, spec: InputSpec, *, num_samples: int, rng: torch.Generator, **_: Any
    ) -> Iterator[Batch]:
        self.misbehave(model)
        yield Batch(torch.randn(num_samples, *spec.shape, generator=rng))

    def misbehave(self, model: nn.Module) -> None: ...


class Failing(Noise):
    """Raises after its first batch."""

    def generate(self, *arguments: Any, **settings: Any) -> Iterator[Batch]:
        yield from super().generate(*arguments, **settings)
        raise RuntimeError("out of luck")


class Short(Noise):
    """Yields one sample less than asked for."""

    def generate(self, *arguments: Any, **settings: Any) -> Iterator[Batch]:
        for batch in super().generate(*arguments, **settings):
            yield Batch(batch.inputs[1:])


class Endless(Noise):
    """Never stops."""

    def generate(self, *arguments: Any, **settings: Any) -> Iterator[Batch]:
        while True:
            yield from super().generate(*arguments, **settings)


class Vandal(Noise):
    """Changes everything that it can reach."""

    fails = False

    def misbehave(self, model: nn.Module) -> None:
        random.random()
        np.random.rand()  # noqa: NPY002  the global generator is the subject
        torch.rand(1)
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        model.train()
        model.register_forward_hook(lambda *_: torch.zeros(1))
        for parameter in model.parameters():
            parameter.requires_grad_()
            parameter.data.zero_()
        if self.fails:
            raise RuntimeError("vandalism")


class FailingVandal(Vandal):
    """Does the same, and raises."""

    fails = True


class Double(Noise):
    """Yields float64 in two batches."""

    def generate(self, *arguments: Any, **settings: Any) -> Iterator[Batch]:
        for batch in super().generate(*arguments, **settings):
            yield Batch(batch.inputs[:1].double())
            yield Batch(batch.inputs[1:].double())


class Recorder(Calibrator):
    """A calibrator that keeps what it is given, and whose result is the float model."""

    last: Recorder

    def __init__(self, _options: NoOptions) -> None:
        self.seen: list[Tensor] = []
        Recorder.last = self

    def prepare(self, model: nn.Module, spec: InputSpec, recipe: Recipe, *, training: bool) -> nn.Module:
        self.given = (model, spec, recipe, training)
        return copy.deepcopy(model)

    def calibrate(self, _prepared: nn.Module, batches: Iterable[Tensor]) -> None:
        assert not torch.is_grad_enabled()
        self.seen = list(batches)
        again = list(batches)
        assert [len(batch) for batch in again] == [len(batch) for batch in self.seen]

    def convert(self, prepared: nn.Module) -> nn.Module:
        self.converted = prepared
        return prepared

    def describe(self, _converted: nn.Module) -> Coverage:
        int8 = NumberFormat(8, signed=True, symmetric=True, per_channel=False, stored_bits=8)
        return Coverage((QuantizedTensor("stem", "Conv2d", "weight", int8),), (("linear", "not supported"),))

    def export(self, _converted: nn.Module, _spec: InputSpec, path: Path) -> tuple[Artifact, ...]:
        path.mkdir(parents=True, exist_ok=True)
        file = path / "model.bin"
        file.write_bytes(b"1234")
        return (Artifact(file, "fake", 4, (Check("runs", "it does"),)),)


class Inverting(Recorder):
    """Names the least likely class."""

    def convert(self, prepared: nn.Module) -> nn.Module:
        prepared.linear.weight.data.neg_()
        prepared.linear.bias.data.neg_()
        return prepared


class Clumsy(Recorder):
    """Spoils its model and the global state, and raises."""

    def calibrate(self, prepared: nn.Module, batches: Iterable[Tensor]) -> None:
        next(iter(batches))
        for model in (prepared, self.given[0]):
            model.train()
            for parameter in model.parameters():
                parameter.data.zero_()
        torch.manual_seed(5)
        torch.set_default_dtype(torch.float64)
        raise RuntimeError("no observers")


@hookimpl
def dfq_generators() -> Iterator[GeneratorEntry]:
    for kind in (Noise, Failing, Short, Endless, Vandal, FailingVandal, Double):
        yield GeneratorEntry(kind.__name__.lower(), "", f"{__name__}:{kind.__name__}")


@hookimpl
def dfq_calibrators() -> Iterator[CalibratorEntry]:
    for kind in (Recorder, Inverting, Clumsy):
        yield CalibratorEntry(kind.__name__.lower(), "", f"{__name__}:{kind.__name__}")
    yield CalibratorEntry("absent", "", "no_such_framework:Calibrator", ("no_such_framework",), "dfq-plugins[absent]")
