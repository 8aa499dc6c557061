"""The optimization loop of all inversion generators."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any, Protocol

import torch

from dfq_plugins.errors import DivergedError
from dfq_plugins.inputs import leaves, map_inputs
from dfq_plugins.statistics.augmentation import Augmentation, draw_maps, padding_of
from dfq_plugins.synthesis.schedule import Plateau, StepSchedule
from dfq_plugins.types import ProgressEvent

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from dfq_plugins.types import Inputs, InputSpec, Specification

SNAPSHOT_INTERVAL = 10
"""Iterations between two loss checks, at which good inputs are saved and progress is reported."""

REPORT_SECONDS = 5.0
"""Maximum seconds between progress reports, so that slow networks also show early how long they will take."""


class Schedule(Protocol):
    """The options of a generator that the loop reads."""

    @property
    def iterations(self) -> int:
        """Number of steps."""
        ...

    @property
    def learning_rate(self) -> float:
        """Adam's learning rate, in units of `scale`."""
        ...

    @property
    def schedule(self) -> str:
        """Schedule of the learning rate: `cosine` or `constant`."""
        ...

    @property
    def plateau(self) -> float:
        """Fraction by which the loss must fall between two checks, or the optimization stops; 0 never stops it."""
        ...

    @property
    def statistics(self) -> str:
        """Whether to match the statistics of each batch (`batch`) or of all batches together (`set`)."""
        ...

    @property
    def clamp(self) -> bool:
        """Whether to keep the inputs valid."""
        ...

    @property
    def precision(self) -> str:
        """Precision of the network."""
        ...

    @property
    def jitter(self) -> int:
        """Largest random shift, in pixels."""
        ...

    @property
    def flip(self) -> bool:
        """Whether to mirror inputs half of the time."""
        ...

    @property
    def crop(self) -> float:
        """Smallest side of a random crop, as a fraction."""
        ...

    @property
    def padding(self) -> int | None:
        """Padding of the random pad-and-crop, in pixels; None for the usual one."""
        ...


class Objective(Protocol):
    """The objective being minimized."""

    def __call__(
        self, inputs: Inputs, labels: Tensor, rest: tuple[Tensor, float] | None, maps: Any = None
    ) -> tuple[Tensor, Inputs, Tensor]:
        """Return the loss, the gradient of the inputs, and this batch's pool for `rest_of`, all detached."""
        ...

    def empty_pool(self) -> Tensor:
        """Return the pool of a batch that has not been processed yet."""
        ...

    def rest_of(self, pools: list[Tensor], index: int) -> tuple[Tensor, float] | None:
        """Return the combined pool of the other batches, and the share of batch `index` in the whole."""
        ...


def learning_rate_at(progress: float, options: Schedule) -> float:
    """Return the learning rate at a progress from 0 to 1: constant, or a half cosine down to zero.

    >>> from dfq_plugins.generators.options import InversionOptions
    >>> [round(learning_rate_at(i / 4, InversionOptions(learning_rate=1.0)), 2) for i in range(4)]
    [1.0, 0.85, 0.5, 0.15]
    """
    if options.schedule == "constant":
        return options.learning_rate
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def drawn_maps(options: Schedule, spec: Specification, inputs: Inputs, rng: torch.Generator) -> Any:
    """Draw the augmentation of a batch; only inputs with spatial axes are augmented, each on its own."""

    def drawn(one: InputSpec, tensor: Tensor) -> Any:
        return draw_maps(augmentation_of(options, one), tuple(tensor.shape), rng, tensor.device)

    return spec.map(drawn, inputs)


def augmentation_of(options: Schedule, spec: InputSpec) -> Augmentation:
    """Return the augmentation before each forward pass; padding implies mirroring, as is usual in training."""
    padding = padding_of(spec) if options.padding is None else options.padding
    return Augmentation(options.jitter, options.flip or padding > 0, options.crop, padding)


SMALLEST_SPREAD = 1e-6
"""Smallest standard deviation that a sample is divided by when it is standardized."""


def make_valid_(inputs: Inputs, spec: Specification) -> Inputs:
    """Change a batch `(batch, *shape)` in place to the nearest valid one.

    Samples are clamped to the valid range of each channel, or standardized if the specification says that they are.

    >>> from dfq_plugins.types import InputSpec
    >>> make_valid_(torch.tensor([[1.0, 3.0], [0.0, 8.0]]), InputSpec((2,), standardized_samples=True)).tolist()
    [[-1.0, 1.0], [-1.0, 1.0]]
    """
    return spec.map(_make_valid_, inputs)


def _make_valid_(spec: InputSpec, inputs: Tensor) -> Tensor:
    if spec.standardized_samples:
        axes = tuple(range(1, inputs.ndim))
        inputs.sub_(inputs.mean(axes, keepdim=True))
        return inputs.div_(inputs.square().mean(axes, keepdim=True).sqrt_().clamp_min_(SMALLEST_SPREAD))
    if spec.bounds is None:
        return inputs
    view = (1, -1) + (1,) * (inputs.ndim - 2)
    low, high = (inputs.new_tensor(edge).view(view) for edge in spec.bounds)
    return inputs.clamp_(low, high)


def optimize_inputs(
    batches: list[Inputs],
    labels: list[Tensor],
    objective: Objective,
    spec: Specification,
    options: Schedule,
    rng: torch.Generator,
    report: Callable[[ProgressEvent], None],
    *,
    scale: Any,
    pace: StepSchedule | None = None,
) -> None:
    """Minimize the objective on all batches together, in place.

    Each iteration takes one Adam step on every batch. With `options.statistics == "set"`, the loss of a batch uses the
    pooled statistics of all batches; those of the other batches are from their latest step.

    Args:
        batches: float32 inputs `(batch, *shape)`.
        labels: target classes of each batch, `(batch,)`.
        objective: the loss to minimize.
        spec: the inputs are made valid after every step if `options.clamp` is set.
        options: weights, schedule and augmentation.
        rng: source of the augmentation.
        report: called with progress events every few iterations.
        scale: standard deviation of each input, the unit of its learning rate: a number, or one by name.
        pace: number of steps to take; None takes `options.iterations`.

    Raises:
        DivergedError: the loss is not finite; the batches hold the last good inputs.
    """
    variables = [map_inputs(lambda tensor: tensor.requires_grad_(), batch) for batch in batches]
    scales = leaves(scale)
    optimizers = [_optimizer(batch, options) for batch in variables]
    pools = [objective.empty_pool() for _ in batches]
    good = [[tensor.detach().clone() for tensor in leaves(batch)] for batch in variables]
    metrics: dict[str, float] = {}
    pace = pace or StepSchedule(options.iterations)
    last_report, plateau = time.monotonic(), Plateau(options.plateau)
    while not pace.finished:
        losses = []
        for index, (variable, optimizer) in enumerate(zip(variables, optimizers, strict=True)):
            rate = learning_rate_at(pace.progress, options) * pace.rate
            for group, unit in zip(optimizer.param_groups, scales, strict=True):
                group["lr"] = rate * unit
            rest = objective.rest_of(pools, index) if options.statistics == "set" else None
            maps = drawn_maps(options, spec, variable, rng)
            batch_loss, gradient, pools[index] = objective(variable, labels[index], rest, maps)
            map_inputs(_set_gradient, variable, gradient)
            optimizer.step()
            if options.clamp:
                make_valid_(map_inputs(lambda tensor: tensor.data, variable), spec)
            losses.append(batch_loss)
        pace.advance()
        check = (pace.done - 1) % SNAPSHOT_INTERVAL == 0
        if not leaves(variables[0])[0].is_cuda:  # a GPU runs asynchronously until its loss is read
            pace.measure()
        if check or pace.finished:
            loss = float(torch.stack(losses).mean())
            _snapshot(pace, loss, variables, good, options)
            metrics = {"loss": float(losses[-1])}
            pace.measure()
            if plateau.reached(loss):
                pace.stop()
        if check or pace.finished or time.monotonic() - last_report >= REPORT_SECONDS:
            last_report = time.monotonic()
            report(ProgressEvent("synthesize", pace.done, pace.expected, metrics))
    for variable in variables:
        map_inputs(lambda tensor: tensor.requires_grad_(False), variable)


def _optimizer(variable: Inputs, options: Schedule) -> torch.optim.Adam:
    """Return an optimizer of one batch, with a group for each input, whose learning rates differ."""
    groups = [{"params": [tensor]} for tensor in leaves(variable)]
    return torch.optim.Adam(groups, lr=options.learning_rate, fused=True)


def _set_gradient(variable: Tensor, gradient: Tensor) -> None:
    # The fused optimizer iterates over raw memory: the gradient needs the memory layout of its variable.
    if variable.grad is None:
        variable.grad = torch.empty_like(variable)
    variable.grad.copy_(gradient)


def _snapshot(
    pace: StepSchedule, loss: float, variables: list[Inputs], good: list[list[Tensor]], options: Schedule
) -> None:
    """Save the inputs if they and the loss are finite; otherwise restore the last good ones and raise."""
    tensors = [tensor for batch in variables for tensor in leaves(batch)]
    finite = math.isfinite(loss) and all(bool(tensor.isfinite().all()) for tensor in tensors)
    for variable, kept in zip(tensors, [tensor for batch in good for tensor in batch], strict=True):
        if finite:
            kept.copy_(variable.detach())
        else:
            variable.data.copy_(kept)
    if not finite:
        raise DivergedError(
            f"The synthesis diverged: the loss was {loss} at iteration {pace.done} of {pace.expected} "
            f"(learning rate {options.learning_rate}, precision {options.precision}). The last good inputs were "
            "restored, and finished shards are kept. Lower the learning rate or the weights of the priors, or choose "
            "precision=float32."
        )
