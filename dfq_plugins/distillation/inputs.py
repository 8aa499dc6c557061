"""Where a student's inputs come from: data that is given, a generator of data sets, or one that learns beside it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from dfq_plugins.errors import UsageError
from dfq_plugins.host.registry import DEFAULT_GENERATOR
from dfq_plugins.statistics.batch_norm import statistics_layers
from dfq_plugins.synthesis.run import synthesize

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import nn

    from dfq_plugins.data.calibration_data import CalibrationData
    from dfq_plugins.host.plugin_info import Kind
    from dfq_plugins.host.registry import Registry
    from dfq_plugins.types import InputSpec, LearningGenerator, ProgressEvent

SELECTION_SAMPLES = 512
"""Samples made where a generator that learns beside the student makes the others."""

_KINDS: tuple[Kind, ...] = ("learning generator", "generator")
"""Where a generator is looked up, in this order: one of both kinds learns from the student."""


@dataclass(frozen=True)
class InputSource:
    """Where a student's inputs come from, as the caller gave it.

    Args:
        data: what to train on; None where a generator makes it.
        generator: the name of a generator of either kind, or an object that learns against the student.
        options: settings of a generator that is given by its name.
        num_samples: how many samples a generator of data sets makes.
        strict: refuse a set that was made from another model.
    """

    data: CalibrationData | None = None
    generator: str | LearningGenerator | None = None
    options: Mapping[str, object] | object | None = None
    num_samples: int = 1024
    strict: bool = False

    def learns(self, registry: Registry) -> bool:
        """Whether the generator learns against the student."""
        if isinstance(self.generator, str):
            return registry.kind_of(self.generator, _KINDS) == "learning generator"
        return self.generator is not None

    def check(self, registry: Registry) -> None:
        """Refuse what no inputs can come from, before anything is made or written.

        Raises:
            UsageError: neither data nor a generator, both of a kind that excludes the other, or an option or value that
                the generator does not take.
            PluginError: an unknown or unavailable generator.
        """
        if self.generator is None and self.data is None:
            raise UsageError(
                "A student learns on inputs: give data, or the name of a generator, "
                f"e.g. generator={DEFAULT_GENERATOR!r}."
            )
        if self.data is not None and self.generator is not None and not self.learns(registry):
            raise UsageError(
                f"Generator {self.generator!r} makes data sets, and data is given already. Give one of the two."
            )
        self.about(registry)

    def about(self, registry: Registry) -> tuple[object, ...]:
        """Return what to call the generator in the record of a run, and all its settings, the defaults included."""
        if self.generator is None:
            return None, self.options
        if isinstance(self.generator, str):
            kind = registry.kind_of(self.generator, _KINDS)
            return self.generator, asdict(registry.options(kind, self.generator, self.options))
        return type(self.generator).__qualname__, self.options

    def learner(self, registry: Registry) -> LearningGenerator:
        """Return the generator that learns against the student, built by its name or as it was given."""
        if isinstance(self.generator, str):
            return registry.create("learning generator", self.generator, self.options)
        assert self.generator is not None  # noqa: S101  for the type checker: there is a generator
        return self.generator

    def given_or_made(
        self,
        model: nn.Module,
        spec: InputSpec | None,
        seed: int,
        folder: Path | None,
        report: Callable[[ProgressEvent], None],
        registry: Registry,
    ) -> CalibrationData:
        """Return the data that was given, or make it; beside a learning generator, a set that selects the best state.

        Args:
            model: the teacher.
            spec: what an input looks like.
            seed: of the set.
            folder: keeps a set that is made here; None keeps none.
            report: hears of the progress.
            registry: where generators are looked up.
        """
        if self.data is not None:
            return self.data
        generator, options, count = str(self.generator), self.options, self.num_samples
        if self.learns(registry):
            generator = DEFAULT_GENERATOR if statistics_layers(model) else "gaussian"
            options, count = None, SELECTION_SAMPLES
        return synthesize(
            model,
            spec,
            generator=generator,
            num_samples=count,
            seed=seed,
            options=options,
            output=None if folder is None else folder / "inputs",
            listeners=[report],
            registry=registry,
        )
