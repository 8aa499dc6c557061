"""The trainable parts of a calibrated Brevitas graph: weights, biases, and the scales, which are parameters too.

A calibrated activation quantizer stores its range in `ParameterFromRuntimeStatsScaling.value`, a weight quantizer in
`ParameterFromStatsFromParameterScaling.value`. Both are learned through the straight-through rounding of the integers,
as in LSQ (Esser et al. 2020, "Learned Step Size Quantization"), and statistics are no longer collected.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfq_brevitas.framework import (
    ParameterFromRuntimeStatsScaling,
    ParameterFromStatsFromParameterScaling,
)
from dfq_brevitas.input_range import known_input_scalings

if TYPE_CHECKING:
    from torch import nn

    from dfq_brevitas.framework import GraphModule
    from dfq_plugins.types import Specification

_SCALINGS = (ParameterFromRuntimeStatsScaling, ParameterFromStatsFromParameterScaling)


def take_gradients(graph: GraphModule, known: Specification | None) -> None:
    """Make weights, biases and scales trainable, in place.

    Args:
        graph: a calibrated graph.
        known: specification whose input ranges the scales were set from, which then stay fixed; None if they were
            calibrated.
    """
    graph.requires_grad_(requires_grad=True)
    if known is not None:
        for scaling in known_input_scalings(graph, known):
            scaling.requires_grad_(requires_grad=False)


def learned_scales(graph: GraphModule) -> tuple[nn.Parameter, ...]:
    """Return the trainable scales, each once."""
    scalings = [module for module in graph.modules() if isinstance(module, _SCALINGS)]
    values = {id(scaling.value): scaling.value for scaling in scalings if scaling.value.requires_grad}
    return tuple(values.values())
