"""The one loop that optimizes inputs: every inversion generator runs on it."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Protocol

import torch

from dfq_plugins.errors import DivergedError
from dfq_plugins.statistics.augmentation import Augmentation, draw_maps, padding_of
from dfq_plugins.synthesis.schedule import Plateau, StepSchedule
from dfq_plugins.types import ProgressEvent

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from dfq_plugins.statistics.augmentation import AxisMaps
    from dfq_plugins.types import InputSpec

SNAPSHOT_INTERVAL = 10
"""Iterations between two looks at the loss: the last good inputs are kept, progress is reported."""

REPORT_SECONDS = 5.0
"""Seconds after which progress is reported in any case, so that slow networks too say early how long they will take."""


class Schedule(Protocol):
    """What the loop reads of a generator's options."""

    @property
    def iterations(self) -> int:
        """How many steps."""
        ...

    @property
    def learning_rate(self) -> float:
        """Step of Adam, in units of `scale`."""
        ...

    @property
    def schedule(self) -> str:
        """How the rate falls: `cosine` or `constant`."""
        ...

    @property
    def plateau(self) -> float:
        """Share by which the loss must fall between two looks at it, or the optimization ends; 0 never ends it."""
        ...

    @property
    def statistics(self) -> str:
        """Whether a batch counts for itself (`batch`) or with all others (`set`)."""
        ...

    @property
    def clamp(self) -> bool:
        """Whether the inputs are kept in their valid range."""
        ...

    @property
    def precision(self) -> str:
        """Type that the network computes in."""
        ...

    @property
    def jitter(self) -> int:
        """Largest random shift, in pixels."""
        ...

    @property
    def flip(self) -> bool:
        """Whether inputs are mirrored half of the time."""
        ...

    @property
    def crop(self) -> float:
        """Smallest side of a random crop, as a share."""
        ...

    @property
    def padding(self) -> int | None:
        """Width of the border to shift over; None for the usual one."""
        ...


class Objective(Protocol):
    """What the loop lowers."""

    def __call__(
        self, inputs: Tensor, labels: Tensor, rest: tuple[Tensor, float] | None, maps: AxisMaps = ()
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss, the gradient of the inputs, and what `rest_of` is to know of this batch, all detached."""
        ...

    def empty_pool(self) -> Tensor:
        """Return what is known of a batch that was not seen yet."""
        ...

    def rest_of(self, pools: list[Tensor], index: int) -> tuple[Tensor, float] | None:
        """Return what is known of the other batches, and the share of batch `index` in all."""
        ...


def learning_rate_at(progress: float, options: Schedule) -> float:
    """Return the learning rate after a share of the steps, 0 to 1: constant, or a half cosine down to zero.

    >>> from dfq_plugins.generators.options import InversionOptions
    >>> [round(learning_rate_at(i / 4, InversionOptions(learning_rate=1.0)), 2) for i in range(4)]
    [1.0, 0.85, 0.5, 0.15]
    """
    if options.schedule == "constant":
        return options.learning_rate
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def augmentation_of(options: Schedule, spec: InputSpec) -> Augmentation:
    """Return what happens to the inputs before each forward pass; training that shifts over a border also mirrors."""
    border = padding_of(spec) if options.padding is None else options.padding
    return Augmentation(options.jitter, options.flip or border > 0, options.crop, border)


def clamp_(inputs: Tensor, spec: InputSpec) -> Tensor:
    """Clamp a batch `(batch, *shape)` to the valid range of each channel, in place."""
    if spec.bounds is None:
        return inputs
    view = (1, -1) + (1,) * (inputs.ndim - 2)
    low, high = (inputs.new_tensor(edge).view(view) for edge in spec.bounds)
    return inputs.clamp_(low, high)


def optimize_inputs(
    batches: list[Tensor],
    labels: list[Tensor],
    objective: Objective,
    spec: InputSpec,
    options: Schedule,
    rng: torch.Generator,
    report: Callable[[ProgressEvent], None],
    *,
    scale: float,
    pace: StepSchedule | None = None,
) -> None:
    """Lower the objective on all batches together, in place.

    Each iteration takes one Adam step on every batch. With `options.statistics == "set"` a batch is judged by the
    statistics of all batches pooled, the others as they were at their last step.

    Args:
        batches: float32 inputs `(batch, *shape)`.
        labels: wanted classes of each batch, `(batch,)`.
        objective: the loss to lower.
        spec: its valid range is kept after every step when `options.clamp` is set.
        options: weights, schedule and augmentation.
        rng: draws of the augmentation.
        report: hears of progress every few iterations.
        scale: standard deviation of the inputs; the learning rate is in its units.
        pace: how many steps to take; None takes `options.iterations`.

    Raises:
        DivergedError: the loss is not finite; the batches hold the last good inputs.
    """
    settings = augmentation_of(options, spec)
    variables = [batch.requires_grad_() for batch in batches]
    optimizers = [torch.optim.Adam([variable], lr=options.learning_rate, fused=True) for variable in variables]
    pools = [objective.empty_pool() for _ in batches]
    good = [variable.detach().clone() for variable in variables]
    metrics: dict[str, float] = {}
    pace = pace or StepSchedule(options.iterations)
    last_report, plateau = time.monotonic(), Plateau(options.plateau)
    while not pace.finished:
        losses = []
        for index, (variable, optimizer) in enumerate(zip(variables, optimizers, strict=True)):
            optimizer.param_groups[0]["lr"] = learning_rate_at(pace.progress, options) * pace.rate * scale
            rest = objective.rest_of(pools, index) if options.statistics == "set" else None
            maps = draw_maps(settings, tuple(variable.shape), rng, variable.device)
            one, gradient, pools[index] = objective(variable, labels[index], rest, maps)
            _set_gradient(variable, gradient)
            optimizer.step()
            if options.clamp:
                clamp_(variable.data, spec)
            losses.append(one)
        pace.advance()
        looks = (pace.done - 1) % SNAPSHOT_INTERVAL == 0
        if not variables[0].is_cuda:  # a GPU may still be busy with the steps until its loss is looked at
            pace.measure()
        if looks or pace.finished:
            loss = float(torch.stack(losses).mean())
            _snapshot(pace, loss, variables, good, options)
            metrics = {"loss": float(losses[-1])}
            pace.measure()
            if plateau.reached(loss):
                pace.stop()
        if looks or pace.finished or time.monotonic() - last_report >= REPORT_SECONDS:
            last_report = time.monotonic()
            report(ProgressEvent("synthesize", pace.done, pace.expected, metrics))
    for variable in variables:
        variable.requires_grad_(False)


def _set_gradient(variable: Tensor, gradient: Tensor) -> None:
    # The fused optimizer walks through memory: the gradient must lie there in the order of its variable.
    if variable.grad is None:
        variable.grad = torch.empty_like(variable)
    variable.grad.copy_(gradient)


def _snapshot(pace: StepSchedule, loss: float, variables: list[Tensor], good: list[Tensor], options: Schedule) -> None:
    """Keep the inputs if they and the loss are finite; otherwise bring the last good ones back and stop."""
    finite = math.isfinite(loss) and all(bool(variable.isfinite().all()) for variable in variables)
    for variable, kept in zip(variables, good, strict=True):
        if finite:
            kept.copy_(variable.detach())
        else:
            variable.data.copy_(kept)
    if not finite:
        raise DivergedError(
            f"The synthesis diverged: the loss was {loss} at iteration {pace.done} of {pace.expected} "
            f"(learning rate {options.learning_rate}, precision {options.precision}). The inputs were put back to the "
            "last good state and finished shards are kept. Lower the learning rate or the weights of the priors, or "
            "choose precision=float32."
        )
