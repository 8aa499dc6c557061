"""The settings of `prepare`, kept for the later steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from dfq_plugins.quantization.prepared import state_of

if TYPE_CHECKING:
    from torch import nn
    from torch.fx import GraphModule

    from dfq_plugins.types import Recipe, Specification


@dataclass(frozen=True)
class Run:
    """Settings of one pass through the calibrator, stored with the graph module.

    Args:
        spec: input of the network.
        recipe: requested bit widths.
        engine: engine that the weights are packed for.
        highest_activation: highest activation integer; 127 for eight bits with a reduced range.
        non_traceable: submodules excluded on purpose.
        training: whether the model was prepared for quantization-aware training.
    """

    spec: Specification
    recipe: Recipe
    engine: str
    highest_activation: int
    non_traceable: tuple[str, ...]
    training: bool = False


def run_of(module: nn.Module) -> tuple[GraphModule, Run]:
    """Return the module, typed as a graph module, and its settings.

    Raises:
        UsageError: the module does not come from this calibrator.
    """
    otherwise = "convert the result of your own prepare_fx with torch.ao's convert_fx"
    run = state_of(module, Run, calibrator="torch-ao", otherwise=otherwise)
    return cast("GraphModule", module), run
