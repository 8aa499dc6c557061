"""Decides whether compiling the step pays off, from the work of a shard or from its time budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dfq_plugins.inputs import blank_inputs
from dfq_plugins.model_state import device_of
from dfq_plugins.synthesis.compilation import compiled_before

if TYPE_CHECKING:
    from dfq_plugins.synthesis.objective import InversionObjective
    from dfq_plugins.synthesis.options import InversionOptions
    from dfq_plugins.types import Inputs, Specification, TimeBudget

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""Layers whose number determines the estimated compilation time."""

COMPILE_SECONDS = (10.0, 0.8)
"""Compilation time measured on two slow cores: fixed seconds, and seconds per weighted layer."""

COMPILED_BEFORE_SECONDS = (2.0, 0.3)
"""The same if the code is in the compile cache and is only loaded."""

COMPILE_SHARE = 0.4
"""Largest fraction of a budget that may be spent on compilation."""

COMPILE_WORTH = 2e12
"""MACs of a shard's whole optimization above which compiling the step pays off."""


def step_work(model: nn.Module, spec: Specification) -> float:
    """Return the MACs of one sample in one step: the forward pass and the input gradient."""
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        spec.run(model, blank_inputs(spec, 1, device_of(model)))
    return float(counter.get_total_flops())  # two operations per MAC, and two passes


def compile_pays(work: float, samples: int, options: InversionOptions) -> bool:
    """Return whether compiling pays off for one shard.

    The decision depends only on the shard, because its bytes must not depend on which other shards the run makes.

    Args:
        work: the result of `step_work`.
        samples: number of samples in the shard.
        options: the number of iterations, and whether to compile always or never.
    """
    if options.compile != "auto":
        return options.compile == "always"
    return work * samples * options.iterations > COMPILE_WORTH


def compile_pays_within(
    budget: TimeBudget,
    iterations: int,
    objective: InversionObjective,
    inputs: Inputs,
    labels: Tensor,
    maps: Any = None,
) -> bool:
    """Return whether to compile within a time budget: if it leaves enough time, and plain steps are too slow.

    Args:
        budget: the time for this shard and for those after it.
        iterations: maximum number of steps per shard; more do not help.
        objective: measures the time of a plain step.
        inputs: a batch of the shard, `(batch, *shape)`.
        labels: its target classes `(batch,)`.
        maps: an augmentation like that of the steps.
    """
    if objective.is_compiled:
        return True
    layers = sum(isinstance(module, WEIGHTED) for module in objective.model.modules())
    fixed, each = COMPILED_BEFORE_SECONDS if compiled_before(objective.description(inputs)) else COMPILE_SECONDS
    if fixed + each * layers > COMPILE_SHARE * budget.run_seconds:
        return False
    return iterations * objective.plain_step_seconds(inputs, labels, maps) > budget.seconds
