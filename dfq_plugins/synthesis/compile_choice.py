"""When compiling the step repays itself: decided from the work of a shard, or from the time that is allowed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dfq_plugins.model_state import device_of
from dfq_plugins.synthesis.compilation import compiled_before

if TYPE_CHECKING:
    from dfq_plugins.statistics.augmentation import AxisMaps
    from dfq_plugins.synthesis.objective import InversionObjective
    from dfq_plugins.synthesis.options import InversionOptions
    from dfq_plugins.types import InputSpec, TimeBudget

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""Layers by whose number compilation time is estimated."""

COMPILE_SECONDS = (10.0, 0.8)
"""What compilation takes on two slow cores, measured: seconds to begin with, and seconds for each weighted layer."""

COMPILED_BEFORE_SECONDS = (2.0, 0.3)
"""The same where the code lies in the compile cache and is only looked up."""

COMPILE_SHARE = 0.4
"""The largest share of a budget that may go into compilation."""

COMPILE_WORTH = 2e12
"""MACs of a shard's whole optimization above which a compiled step repays its compilation."""


def step_work(model: nn.Module, spec: InputSpec) -> float:
    """Return the MACs of one sample in one step: the forward pass and the gradient of the input."""
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, *spec.shape, device=device_of(model)))
    return float(counter.get_total_flops())  # two operations a MACs, and two passes


def compile_pays(work: float, samples: int, options: InversionOptions) -> bool:
    """Tell whether compiling repays itself for one shard.

    A shard decides for itself alone: its bytes must not depend on which other shards the same run makes.

    Args:
        work: what `step_work` returned.
        samples: samples of the shard.
        options: number of iterations, and whether to compile always or never.
    """
    if options.compile != "auto":
        return options.compile == "always"
    return work * samples * options.iterations > COMPILE_WORTH


def compile_pays_within(
    budget: TimeBudget,
    iterations: int,
    objective: InversionObjective,
    inputs: Tensor,
    labels: Tensor,
    maps: AxisMaps = (),
) -> bool:
    """Tell whether to compile where time is limited: where it leaves time to use it, and plain steps do not suffice.

    Args:
        budget: the time of this shard and of those after it.
        iterations: steps of one shard beyond which more do not help.
        objective: measures how long a plain step takes.
        inputs: a batch of the shard, `(batch, *shape)`.
        labels: its wanted classes `(batch,)`.
        maps: the kind of augmentation that the steps have.
    """
    if objective.is_compiled:
        return True
    layers = sum(isinstance(module, WEIGHTED) for module in objective.model.modules())
    fixed, each = COMPILED_BEFORE_SECONDS if compiled_before(objective.description(inputs)) else COMPILE_SECONDS
    if fixed + each * layers > COMPILE_SHARE * budget.run_seconds:
        return False
    return iterations * objective.plain_step_seconds(inputs, labels, maps) > budget.seconds
