"""What `prepare` was told, carried along for the later steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from dfq_plugins.quantization.prepared import state_of

if TYPE_CHECKING:
    from torch import nn
    from torch.fx import GraphModule

    from dfq_plugins.types import InputSpec, Recipe


@dataclass(frozen=True)
class Run:
    """Settings of one way through the calibrator, kept with the graph module.

    Args:
        spec: input of the network.
        recipe: bit widths that were asked for.
        engine: engine that the weights are packed for.
        highest_activation: highest integer of an activation; 127 with eight bits in a reduced range.
        non_traceable: submodules left out on purpose.
        training: whether it was prepared for quantization-aware training.
    """

    spec: InputSpec
    recipe: Recipe
    engine: str
    highest_activation: int
    non_traceable: tuple[str, ...]
    training: bool = False


def run_of(module: nn.Module) -> tuple[GraphModule, Run]:
    """Return the module as the graph module that it is, and its settings.

    Raises:
        UsageError: the module does not come from this calibrator.
    """
    otherwise = "what your own prepare_fx returned, convert with torch.ao's own convert_fx"
    run = state_of(module, Run, calibrator="torch-ao", otherwise=otherwise)
    return cast("GraphModule", module), run
