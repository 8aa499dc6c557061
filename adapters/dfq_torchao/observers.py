"""Finds torchao's observers and fake quantizers in a prepared graph, and which of them belong to weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torchao.quantization.pt2e.fake_quantize import FakeQuantizeBase, FixedQParamsFakeQuantize
from torchao.quantization.pt2e.observer import (
    FixedQParamsObserver,
    MinMaxObserver,
    ObserverBase,
    UniformQuantizationObserverBase,
)

from dfq_shared.observers import ObserverFamily

if TYPE_CHECKING:
    from torch import nn
    from torch.fx import GraphModule, Node

FAMILY = ObserverFamily(
    observer=ObserverBase,
    fixed_observer=FixedQParamsObserver,
    fake_quantizer=FakeQuantizeBase,
    fixed_fake_quantizer=FixedQParamsFakeQuantize,
    min_max=MinMaxObserver,
)
observer_of = FAMILY.observer_of


def observed_nodes(prepared: GraphModule) -> list[tuple[Node, nn.Module]]:
    """Return the calls of observers and fake quantizers in order, each with its module."""
    modules = dict(prepared.named_modules(remove_duplicate=False))
    calls = [node for node in prepared.graph.nodes if node.op == "call_module"]
    return [(node, modules[str(node.target)]) for node in calls if observer_of(modules[str(node.target)]) is not None]


def activation_observers(prepared: GraphModule) -> list[Any]:
    """Return the observers and fake quantizers of values that depend on the input, each once."""
    dependent = input_dependent(prepared)
    found = [module for node, module in observed_nodes(prepared) if node.args[0] in dependent]
    return list({id(module): module for module in found}.values())


def weight_observers(prepared: GraphModule) -> list[Any]:
    """Return the observers and fake quantizers of weights and other constants, each once."""
    dependent = input_dependent(prepared)
    found = [module for node, module in observed_nodes(prepared) if node.args[0] not in dependent]
    return list({id(module): module for module in found}.values())


def input_dependent(graph: GraphModule) -> set[Node]:
    """Return the nodes whose results depend on the network's input."""
    found: set[Node] = set()
    for node in graph.graph.nodes:
        if node.op == "placeholder" or any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def finds_one_range(module: nn.Module) -> bool:
    """Return whether an observer finds one range for the whole tensor from the values that it sees."""
    observer = observer_of(module)
    return (
        isinstance(observer, UniformQuantizationObserverBase)
        and not getattr(module, "is_dynamic", False)
        and not getattr(observer, "is_dynamic", False)
        and not hasattr(observer, "ch_axis")
    )
