"""Sources of a student's inputs: given data, a data generator, or a learning generator."""

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
    from dfq_plugins.types import GivenSpec, LearningGenerator, ProgressEvent

SELECTION_SAMPLES = 512
"""Number of samples to synthesize for selecting the best state when a learning generator makes the training inputs."""

_KINDS: tuple[Kind, ...] = ("learning generator", "generator")
"""Lookup order of generators: a name that is registered as both is used as a learning generator."""


@dataclass(frozen=True)
class InputSource:
    """Source of a student's inputs, as given by the caller.

    Args:
        data: training data; None if a generator makes it.
        generator: name of a generator of either kind, or a learning generator object.
        options: settings of a generator given by name.
        num_samples: number of samples that a data generator makes.
        allow_other_network: only warn of data that was synthesized from another network.
    """

    data: CalibrationData | None = None
    generator: str | LearningGenerator | None = None
    options: Mapping[str, object] | object | None = None
    num_samples: int = 1024
    allow_other_network: bool = False

    def learns(self, registry: Registry) -> bool:
        """Return whether the generator learns from the student."""
        if isinstance(self.generator, str):
            return registry.kind_of(self.generator, _KINDS) == "learning generator"
        return self.generator is not None

    def check(self, registry: Registry) -> None:
        """Reject an unusable source before anything is synthesized or written.

        Raises:
            UsageError: neither data nor a generator is given, both exclude each other, or the generator rejects an
                option or value.
            PluginError: the generator is unknown or unavailable.
        """
        if self.generator is None and self.data is None:
            raise UsageError(
                "Training a student needs inputs: give data, or the name of a generator, "
                f"e.g. generator={DEFAULT_GENERATOR!r}."
            )
        if self.data is not None and self.generator is not None and not self.learns(registry):
            raise UsageError(
                f"Generator {self.generator!r} makes data sets, but data is given too. Give one of the two."
            )
        self.about(registry)

    def about(self, registry: Registry) -> tuple[object, ...]:
        """Return the generator's name for the record of a run, and all its settings, including defaults."""
        if self.generator is None:
            return None, self.options
        if isinstance(self.generator, str):
            kind = registry.kind_of(self.generator, _KINDS)
            return self.generator, asdict(registry.options(kind, self.generator, self.options))
        return type(self.generator).__qualname__, self.options

    def learner(self, registry: Registry) -> LearningGenerator:
        """Return the learning generator, built by name or as given."""
        if isinstance(self.generator, str):
            return registry.create("learning generator", self.generator, self.options)
        assert self.generator is not None  # noqa: S101  for the type checker: there is a generator
        return self.generator

    def given_or_made(
        self,
        model: nn.Module,
        spec: GivenSpec | None,
        seed: int,
        folder: Path | None,
        report: Callable[[ProgressEvent], None],
        registry: Registry,
    ) -> CalibrationData:
        """Return the given data, or synthesize it; with a learning generator, only a set to select the best state.

        Args:
            model: the teacher.
            spec: input specification.
            seed: seed of the synthesized data.
            folder: where synthesized data is stored; None does not store it.
            report: called with every progress event.
            registry: registry to look up generators in.
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
