"""Gives the network's output quantizer headroom above the calibrated range.

Synthetic inputs do not produce logits as large as those of real ones: if only BatchNorm statistics are matched, the
largest logits stay below half of that. Logits beyond the end of the range would all saturate to the same integer, and
the arg max among them would be lost. The integer kernels of the x86 engine already have that headroom, because their
reduced range ends at half of what the storage holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.ao.quantization import FixedQParamsObserver

from dfq_torch_ao.input_range import known_range, moves_values, replace_observers
from dfq_torch_ao.observers import observer_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn
    from torch.fx import GraphModule, Node


def widen_output_range(calibrated: GraphModule, factor: float) -> int:
    """Replace each observer of the network's output with one whose range is `factor` times as wide.

    Args:
        calibrated: a prepared module whose observers have seen data; changed in place.
        factor: at least 1; 1 changes nothing.

    Returns:
        Number of observers replaced: 0 if the output is computed in float.
    """
    if factor == 1:
        return 0
    modules = dict(calibrated.named_modules(remove_duplicate=False))
    observers = {id(modules[str(node.target)]) for node in _output_observers(calibrated, modules)}
    replace_observers(calibrated, observers, lambda observer: known_range(observer, _range_of(observer, factor)))
    return len(observers)


def _output_observers(calibrated: GraphModule, modules: dict[str, nn.Module]) -> Iterator[Node]:
    """Yield the nodes that observe the output, directly or before operations that only move its values."""
    reached = [node for node in calibrated.graph.nodes if node.op == "output"]
    while reached:
        for node in reached.pop().all_input_nodes:
            observer = observer_of(modules.get(str(node.target))) if node.op == "call_module" else None
            if observer is not None and not isinstance(observer, FixedQParamsObserver):
                yield node
            elif moves_values(node, modules):
                reached.append(node)


def _range_of(observer: Any, factor: float) -> tuple[float, float]:
    """Return the observed range multiplied by `factor`."""
    scale, zero_point = (float(value) for value in observer.calculate_qparams())
    return (observer.quant_min - zero_point) * scale * factor, (observer.quant_max - zero_point) * scale * factor
