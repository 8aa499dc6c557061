"""Ranges that the data need not tell: those of the inputs, and the room of the output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torchao.quantization.pt2e.fake_quantize import FixedQParamsFakeQuantize
from torchao.quantization.pt2e.observer import FixedQParamsObserver, HistogramObserver

from dfq_plugins.network.graph_inputs import input_nodes
from dfq_shared.observers import observers_of_input, observers_of_output, replace_observers
from dfq_torchao.observers import FAMILY, finds_one_range, observed_nodes
from dfq_torchao.operations import moves_values

if TYPE_CHECKING:
    from torch import nn
    from torch.fx import GraphModule

    from dfq_plugins.types import Specification

_FULL_RANGE = 255


def match_histogram_levels(prepared: nn.Module) -> None:
    """Set histogram observers to the number of levels in use when they weigh clipping; torchao assumes 256."""
    for module in prepared.modules():
        if isinstance(module, HistogramObserver):
            module.dst_nbins = module.quant_max - module.quant_min + 1


def fix_input_ranges(prepared: GraphModule, spec: Specification) -> int:
    """Replace each observer of an input whose range is known with one that has this range, in place.

    Returns:
        Number of observers replaced: 0 if the network first computes with its input, e.g. normalizes it.
    """
    replaced = 0
    observers = dict(observed_nodes(prepared))
    for placeholder, one in input_nodes(prepared, spec):
        if one.input_range is None:
            continue
        found = observers_of_input(placeholder, lambda node: node in observers, moves_values)
        modules = {id(observers[node]) for node in found if finds_one_range(observers[node])}
        known = one.input_range
        replace_observers(prepared, modules, lambda module, known=known: FAMILY.known_range(module, known))  # type: ignore[misc]
        replaced += len(modules)
    return replaced


def widen_output_range(calibrated: GraphModule, factor: float) -> int:
    """Replace each 8-bit observer of the network's output with one whose range is `factor` times as wide, in place.

    Synthetic inputs do not produce logits as large as those of real ones, and logits beyond the end of the range would
    all saturate to the same integer.

    Returns:
        Number of observers replaced: 0 if the output is computed in float.
    """
    if factor == 1:
        return 0
    observers = dict(observed_nodes(calibrated))
    found = observers_of_output(calibrated, lambda node: node in observers, moves_values)
    wide = {id(observers[node]) for node in found if _has_full_range(observers[node])}
    replace_observers(
        calibrated, wide, lambda module: FAMILY.known_range(module, FAMILY.observed_range(module, factor))
    )
    return len(wide)


def _has_full_range(module: Any) -> bool:
    if isinstance(module, (FixedQParamsObserver, FixedQParamsFakeQuantize)) or not finds_one_range(module):
        return False
    form = FAMILY.number_format(module)
    return bool(form["quant_max"] - form["quant_min"] == _FULL_RANGE)
