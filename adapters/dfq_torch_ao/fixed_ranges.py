"""Mends the observers of sigmoid, tanh and similar operations, whose outputs have a known range.

torch.ao gives an operation's QConfig to its input too if nothing else observes that: a tanh behind a float operation
would read values cut off at 1. And their int8 kernels always write 256 levels, which the 16-bit sums of the next layer
cannot hold on processors without VNNI. Where the range is reduced they are computed in float, between integers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.ao.quantization import FixedQParamsObserver

from dfq_shared.observers import replace_observers
from dfq_torch_ao.float_operations import FIXED_RANGE_OPERATIONS, calls
from dfq_torch_ao.observers import known_range, observer_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn
    from torch.fx import GraphModule, Node


def observe_inputs(prepared: GraphModule, new_observer: Callable[[], nn.Module]) -> int:
    """Replace the known ranges of tensors that do not come from such an operation by observed ones, in place.

    Returns:
        Number of observers replaced.
    """
    modules = dict(prepared.named_modules(remove_duplicate=False))
    producers = _producers(prepared, modules)
    wrong = {key for key, nodes in producers.items() if not any(_has_known_range(node, modules) for node in nodes)}
    replacements = {key: new_observer() for key in wrong}
    replace_observers(prepared, wrong, lambda module: replacements[id(module)])
    return len(wrong)


def reduce_fixed_ranges(prepared: GraphModule, highest: int) -> dict[Node, str]:
    """Let observers of known ranges use the integers 0 to `highest` for the same values, in place.

    Returns:
        The operations whose kernels would not obey, which have to be hidden from lowering, with the reason.
    """
    modules = dict(prepared.named_modules(remove_duplicate=False))
    producers = _producers(prepared, modules)
    ranges: dict[int, tuple[float, float]] = {}
    for module in modules.values():
        observer = observer_of(module)
        if id(module) in producers and observer is not None and observer.quant_max > highest:
            ranges[id(module)] = _values(observer)
            observer.quant_max = highest
    replacements = {id(m): known_range(m, ranges[id(m)]) for m in modules.values() if id(m) in ranges}
    replace_observers(prepared, set(ranges), lambda module: replacements[id(module)])
    reason = "in float: its int8 kernel would not stay within the reduced range"
    nodes = [node for key in ranges for node in producers[key] if _has_known_range(node, modules)]
    return dict.fromkeys(nodes, reason)


def _producers(prepared: GraphModule, modules: dict[str, nn.Module]) -> dict[int, list[Node]]:
    """Return the nodes whose results each observer of a known range sees, by the observer's `id()`."""
    producers: dict[int, list[Node]] = {}
    for node in prepared.graph.nodes:
        module = modules[str(node.target)] if node.op == "call_module" else None
        if isinstance(observer_of(module), FixedQParamsObserver):
            producers.setdefault(id(module), []).append(node.args[0])
    return producers


def _has_known_range(node: Node, modules: dict[str, nn.Module]) -> bool:
    return calls(node, FIXED_RANGE_OPERATIONS, modules)


def _values(observer: FixedQParamsObserver) -> tuple[float, float]:
    scale, zero_point = float(observer.scale), float(observer.zero_point)
    return (observer.quant_min - zero_point) * scale, (observer.quant_max + 1 - zero_point) * scale
