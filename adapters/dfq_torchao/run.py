"""The settings of `prepare`, kept for the later steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from dfq_plugins.quantization.prepared import state_of

if TYPE_CHECKING:
    from torch import nn
    from torch.fx import GraphModule

    from dfq_plugins.types import Recipe, Specification
    from dfq_torchao.options import TorchaoOptions


@dataclass(frozen=True)
class Run:
    """Settings of one pass through the calibrator, stored with the graph module.

    Args:
        spec: input of the network.
        recipe: requested bit widths.
        options: settings of the calibrator.
        reduced: whether activations stay within 0..127.
        training: whether the model was prepared for quantization-aware training.
    """

    spec: Specification
    recipe: Recipe
    options: TorchaoOptions
    reduced: bool
    training: bool = False


def run_of(module: nn.Module) -> tuple[GraphModule, Run]:
    """Return the module, typed as a graph module, and its settings.

    Raises:
        UsageError: the module does not come from this calibrator.
    """
    otherwise = "convert the result of your own prepare_pt2e with torchao's convert_pt2e"
    run = state_of(module, Run, calibrator="torchao", otherwise=otherwise)
    return cast("GraphModule", module), run
