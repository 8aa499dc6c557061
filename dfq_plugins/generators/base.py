"""The run that all inversion generators share; each generator's own file says what it optimises."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch

from dfq_plugins.checks import require_batch_norm
from dfq_plugins.errors import UsageError
from dfq_plugins.generators.start import fitted_moments, input_moments, noise
from dfq_plugins.inversion import InversionObjective, compile_pays
from dfq_plugins.optimization import optimize_inputs
from dfq_plugins.types import Batch, ProgressEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn

    from dfq_plugins.generators.options import InversionOptions
    from dfq_plugins.types import InputSpec

SMALLEST_BATCH = 32
"""Fewer samples have no statistics to match: smaller requests are optimised at this size and cut."""


class InversionGenerator:
    """Optimises noise until the network's own records fit it.

    Args:
        options: weights of the objective's terms, schedule, augmentation and precision.
    """

    def __init__(self, options: InversionOptions) -> None:
        self.options = options
        self._objectives: WeakKeyDictionary[nn.Module, InversionObjective] = WeakKeyDictionary()

    @property
    def conditional(self) -> bool:
        """Whether the inputs are made for given classes, which come back as labels."""
        return self.options.class_weight > 0

    def generate(
        self,
        model: nn.Module,
        spec: InputSpec,
        *,
        num_samples: int,
        batch_size: int,
        rng: torch.Generator,
        report: Callable[[ProgressEvent], None],
    ) -> Iterator[Batch]:
        """Yield exactly `num_samples` optimised inputs in batches of near-equal size.

        Raises:
            ModelError: the objective matches BatchNorm statistics and the network has none that are usable.
            UsageError: the objective has a class term and the network is no classifier.
            DivergedError: the loss is not finite.
        """
        self._check(model, spec)
        sizes = even_split(num_samples, min(batch_size, self.options.step_samples or batch_size))
        objective = self._objective(model, spec, max(num_samples, SMALLEST_BATCH))
        centre, scale = input_moments(spec)
        if self.options.batch_norm_weight and not spec.standardized:
            centre, scale = fitted_moments(objective, spec, rng)
        device = next(model.parameters()).device
        batches = [noise(spec, max(size, SMALLEST_BATCH), centre, scale, rng, device) for size in sizes]
        labels = [balanced_labels(len(batch), spec.num_classes, rng).to(device) for batch in batches]
        groups = [list(range(len(batches)))] if self.options.statistics == "set" else [[i] for i in range(len(batches))]
        for number, group in enumerate(groups):
            optimize_inputs(
                [batches[i] for i in group],
                [labels[i] for i in group],
                objective,
                spec,
                self.options,
                rng,
                _within(report, number, len(groups)),
                scale=scale,
            )
        for batch, wanted, size in zip(batches, labels, sizes, strict=True):
            yield Batch(batch[:size].detach(), wanted[:size] if self.conditional else None)

    def _check(self, model: nn.Module, spec: InputSpec) -> None:
        if self.options.batch_norm_weight:
            require_batch_norm(model)
        if self.options.class_weight and spec.num_classes is None:
            raise UsageError(
                "A class term needs a classifier: set num_classes in the input specification, or class_weight to 0."
            )

    def _objective(self, model: nn.Module, spec: InputSpec, samples: int) -> InversionObjective:
        """Return the objective for this model, built and compiled once for all shards."""
        if model not in self._objectives:
            objective = InversionObjective(model, spec, self.options)
            if compile_pays(model, spec, samples, self.options):
                objective.compile()
            self._objectives[model] = objective
        return self._objectives[model]


def even_split(total: int, largest: int) -> list[int]:
    """Split `total` into the fewest parts of at most `largest`, as equal as can be.

    >>> even_split(1000, 256)
    [250, 250, 250, 250]
    >>> even_split(10, 4)
    [4, 3, 3]
    """
    parts = math.ceil(total / largest)
    small, extra = divmod(total, parts)
    return [small + 1] * extra + [small] * (parts - extra)


def balanced_labels(count: int, num_classes: int | None, rng: torch.Generator) -> Tensor:
    """Return `count` labels in random order, every class as often as any other (give or take one).

    >>> balanced_labels(6, 3, torch.Generator().manual_seed(0)).bincount().tolist()
    [2, 2, 2]
    """
    labels = torch.arange(count) % (num_classes or 1)
    return labels[torch.randperm(count, generator=rng)]


def _within(report: Callable[[ProgressEvent], None], part: int, parts: int) -> Callable[[ProgressEvent], None]:
    """Report the progress of one of several equal parts as progress of the whole."""
    return lambda event: report(replace(event, completed=part * event.total + event.completed, total=parts * event.total))
