"""The generators that optimize inputs against the network; they differ in the defaults of their options."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

import torch

from dfq_plugins.errors import UsageError
from dfq_plugins.generators.noise import draw_noise
from dfq_plugins.generators.start import fitted_noise, known_noise
from dfq_plugins.inputs import map_inputs, rows
from dfq_plugins.model_state import device_of
from dfq_plugins.network.specification import require_classes
from dfq_plugins.statistics.requirements import require_batch_norm
from dfq_plugins.synthesis.compile_choice import compile_pays, compile_pays_within, step_work
from dfq_plugins.synthesis.gradients import require_gradients
from dfq_plugins.synthesis.loop import drawn_maps, optimize_inputs
from dfq_plugins.synthesis.objective import InversionObjective
from dfq_plugins.synthesis.schedule import pace_within
from dfq_plugins.types import Batch, DataGenerator, ProgressEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn

    from dfq_plugins.synthesis.options import InversionOptions
    from dfq_plugins.synthesis.schedule import StepSchedule
    from dfq_plugins.types import Inputs, Specification, TimeBudget

logger = logging.getLogger(__name__)

SMALLEST_BATCH = 32
"""Smaller batches have no meaningful statistics, so smaller requests are optimized at this size and truncated."""


@dataclass(frozen=True)
class Preparation:
    """The state that all shards of one model share.

    Args:
        objective: the objective being minimized.
        noise: the `Noise` of the initial inputs; by name if there are several.
        work: MACs of one sample in one step.
    """

    objective: InversionObjective
    noise: Any
    work: float


class InversionGenerator(DataGenerator):
    """Optimizes noise until its statistics match those that the network stores.

    Args:
        options: weights of the objective's terms, schedule, augmentation and precision.
    """

    timed = True
    several_inputs = True

    def __init__(self, options: InversionOptions) -> None:
        self.options = options
        self.keeps_range = options.clamp
        self.conditional = options.class_weight > 0
        self._preparations: WeakKeyDictionary[nn.Module, Preparation] = WeakKeyDictionary()
        self._differentiable: WeakSet[nn.Module] = WeakSet()

    def generate(
        self,
        model: nn.Module,
        spec: Specification,
        *,
        num_samples: int,
        batch_size: int,
        rng: torch.Generator,
        report: Callable[[ProgressEvent], None],
        budget: TimeBudget | None = None,
    ) -> Iterator[Batch]:
        """Yield exactly `num_samples` optimized inputs in batches of near-equal size.

        With a time budget, the number of iterations is chosen to fit it, and is stored in the budget.

        Raises:
            ModelError: the objective matches BatchNorm statistics, but the network has no usable ones.
            UsageError: the objective has a class term, but the network is not a classifier.
            DivergedError: the loss is not finite.
        """
        began = time.monotonic()
        self.check_supported(model, spec)
        ready = self._prepare(model, spec)
        sizes = even_split(num_samples, min(batch_size, self.options.step_samples or batch_size))
        padded = [max(size, self._min_step_samples(len(sizes))) for size in sizes]
        device = device_of(model)
        batches = [draw_noise(spec, size, ready.noise, rng, device) for size in padded]
        labels = [part.to(device) for part in _split_labels(sizes, padded, spec.num_classes, rng)]
        end = self._choose_step(ready, spec, batches[0], labels[0], sum(padded), budget, began)
        groups = [list(range(len(batches)))] if self.options.statistics == "set" else [[i] for i in range(len(batches))]
        for number, group in enumerate(groups):
            pace = self._schedule((end - time.monotonic()) / (len(groups) - number))
            optimize_inputs(
                [batches[i] for i in group],
                [labels[i] for i in group],
                ready.objective,
                spec,
                self.options,
                rng,
                within(report, number, len(groups)),
                scale=map_inputs(lambda noise: noise.scale, ready.noise),
                pace=pace,
            )
            if budget is not None:
                budget.iterations = min(pace.done, budget.iterations or pace.done)
        for batch, wanted, size in zip(batches, labels, sizes, strict=True):
            yield Batch(map_inputs(torch.detach, rows(batch, slice(size))), wanted[:size] if self.conditional else None)

    def check_supported(self, model: nn.Module, spec: Specification) -> None:
        """Reject a model or specification that the objective does not support, before anything is written.

        Raises:
            ModelError: the objective matches BatchNorm statistics, but the network has no usable ones, or no gradient
                reaches its inputs.
            UsageError: there is a class term without a classifier, or no term at all.
        """
        options = self.options
        weights = (options.batch_norm_weight, options.class_weight, options.blur_weight, options.total_variation_weight)
        if not any((*weights, options.l2_weight)):
            raise UsageError("All weights of the objective are 0, so nothing is optimized. Set batch_norm_weight to 1.")
        if self.options.batch_norm_weight:
            require_batch_norm(model)
        if self.options.class_weight:
            require_classes(model, spec, "A class term needs a classifier; class_weight=0 does without.")
        if model not in self._differentiable and (options.batch_norm_weight or options.class_weight):
            require_gradients(model, spec, statistics=options.batch_norm_weight > 0)
            self._differentiable.add(model)

    def _schedule(self, seconds: float) -> StepSchedule:
        """Return a schedule of the options' iterations, or of as many as fit into a finite number of seconds.

        A budget never adds iterations: beyond the default the divergence still falls, but calibration does not improve.
        """
        most = self.options.iterations
        return pace_within(seconds, most, usual=min(type(self.options)().iterations, most))

    def _choose_step(
        self,
        ready: Preparation,
        spec: Specification,
        batch: Inputs,
        labels: Tensor,
        samples: int,
        budget: TimeBudget | None,
        began: float,
    ) -> float:
        """Choose between the plain and the compiled step; return the time at which the shard must be done.

        One-time work for all shards (initial noise, compilation, kernel selection) is charged to the whole budget.
        """
        objective, options = ready.objective, self.options
        if budget is None:
            objective.use_compiled(compile_pays(ready.work, samples, options))
            return math.inf
        maps = drawn_maps(options, spec, batch, torch.Generator())
        if options.compile == "auto":
            pays = compile_pays_within(budget, options.iterations, objective, batch, labels, maps)
            objective.use_compiled(pays)
        else:
            objective.use_compiled(compile_pays(ready.work, samples, options))
        objective.warm_up(batch, labels, maps)
        now = time.monotonic()
        return now + budget.after(now - began)

    def _prepare(self, model: nn.Module, spec: Specification) -> Preparation:
        """Return the shared state, built once: it depends on the model and the options, but on no shard's seed."""
        if model not in self._preparations:
            objective = InversionObjective(model, spec, self.options)
            fitted = self.options.start == "fitted" and self.options.batch_norm_weight > 0
            noise = fitted_noise(objective, spec) if fitted else known_noise(spec)
            if self.options.batch_norm_weight > 0:
                _report_unseen(objective.unseen_inputs() if len(spec.named) > 1 else (), spec)
            self._preparations[model] = Preparation(objective, noise, step_work(model, spec))
        return self._preparations[model]

    def _min_step_samples(self, parts: int) -> int:
        """Return the minimum number of samples in a step with meaningful statistics."""
        return math.ceil(SMALLEST_BATCH / parts) if self.options.statistics == "set" else SMALLEST_BATCH


def _report_unseen(names: tuple[str, ...], spec: Specification) -> None:
    """Say which inputs the stored statistics say nothing about."""
    for name in names:
        one = spec.named[name]
        known = one.standardized or one.value_range is not None
        advice = "" if known else " It has neither mean and std nor a value range there, so it has mean 0 and std 1."
        logger.warning(
            "No BatchNorm layer sees the input %r: its samples are drawn from its specification.%s", name, advice
        )


def even_split(total: int, largest: int) -> list[int]:
    """Split `total` into the fewest parts of at most `largest`, as equal as possible.

    >>> even_split(1000, 256)
    [250, 250, 250, 250]
    >>> even_split(10, 4)
    [4, 3, 3]
    """
    parts = math.ceil(total / largest)
    small, extra = divmod(total, parts)
    return [small + 1] * extra + [small] * (parts - extra)


def balanced_labels(count: int, num_classes: int | None, rng: torch.Generator) -> Tensor:
    """Return `count` labels in random order, with equal class counts (give or take one).

    >>> balanced_labels(6, 3, torch.Generator().manual_seed(0)).bincount().tolist()
    [2, 2, 2]
    """
    classes = num_classes or 1
    rounds = [torch.randperm(classes, generator=rng) for _ in range(math.ceil(count / classes))]
    return torch.cat([torch.empty(0, dtype=torch.long), *rounds])[:count]


def _split_labels(sizes: list[int], padded: list[int], num_classes: int | None, rng: torch.Generator) -> list[Tensor]:
    """Return balanced labels for the samples of each part, and additional ones for its padding."""
    kept = torch.split(balanced_labels(sum(sizes), num_classes, rng), sizes)
    return [
        torch.cat([part, balanced_labels(size - len(part), num_classes, rng)])
        for part, size in zip(kept, padded, strict=True)
    ]


def within(report: Callable[[ProgressEvent], None], part: int, parts: int) -> Callable[[ProgressEvent], None]:
    """Return a listener that reports the progress of one of several equal parts as progress of the whole."""

    def whole(event: ProgressEvent) -> None:
        report(replace(event, completed=part * event.total + event.completed, total=parts * event.total))

    return whole


class BatchNormGenerator(InversionGenerator):
    """Matches the stored mean and variance at every BatchNorm layer's input, and those of the network input if known.

    Source: Haroush et al. 2020, BN-Statistics (BNS) scheme.
    """


class BatchNormInceptionGenerator(InversionGenerator):
    """Matches the stored statistics while maximizing the target class, so that the inputs have labels.

    Source: Haroush et al. 2020, BNS+I scheme.
    """


class InceptionGenerator(InversionGenerator):
    """Maximizes the target class with a smoothness prior and random augmentation; works without BatchNorm.

    Source: Haroush et al. 2020, Inception scheme.
    """
