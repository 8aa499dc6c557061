"""Observers and fake quantizers in a prepared graph, for two frameworks with the same classes under different names.

torchao copied the observers of torch.ao. Each adapter describes its own in an `ObserverFamily`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from torch import nn
    from torch.fx import GraphModule, Node


@dataclass(frozen=True)
class ObserverFamily:
    """The classes of one framework.

    Args:
        observer: base class of observers.
        fixed_observer: observer with a given scale and zero point.
        fake_quantizer: base class of fake quantizers, which contain an observer.
        fixed_fake_quantizer: fake quantizer around a `fixed_observer`.
        min_max: observer of the smallest and largest value.
    """

    observer: type[Any]
    fixed_observer: type[Any]
    fake_quantizer: type[Any]
    fixed_fake_quantizer: type[Any]
    min_max: type[Any]

    def observer_of(self, module: nn.Module | None) -> Any | None:
        """Return the observer that a module is or contains, or None if there is none."""
        if isinstance(module, self.fake_quantizer):
            return module.activation_post_process
        return module if isinstance(module, self.observer) else None

    def number_format(self, module: nn.Module) -> dict[str, Any]:
        """Return the type, scheme and integer range that an observer or fake quantizer quantizes to."""
        observer = self.observer_of(module)
        return {name: getattr(observer, name) for name in ("dtype", "qscheme", "quant_min", "quant_max")}

    def fixed_like(self, module: nn.Module, scale: float, zero_point: int) -> nn.Module:
        """Return an observer or a fake quantizer with the number format of `module` and a fixed scale."""
        number_format = self.number_format(module)
        if not isinstance(module, self.fake_quantizer):
            observer: nn.Module = self.fixed_observer(scale, zero_point, **number_format)
            return observer
        fixed = self.fixed_observer.with_args(scale=scale, zero_point=zero_point, **number_format)
        fake_quantizer: nn.Module = self.fixed_fake_quantizer(observer=fixed)
        return fake_quantizer

    def known_range(self, module: nn.Module, value_range: tuple[float, float]) -> nn.Module:
        """Return an observer or fake quantizer like `module`, with the scale and zero point of the given range."""
        reference = self.min_max(**self.number_format(module))
        reference(torch.tensor(value_range))
        scale, zero_point = reference.calculate_qparams()
        return self.fixed_like(module, scale.item(), zero_point.item())

    def observed_range(self, module: nn.Module, factor: float = 1.0) -> tuple[float, float]:
        """Return the values of the lowest and the highest integer of an observer, multiplied by `factor`."""
        observer: Any = self.observer_of(module)
        scale, zero_point = (float(value) for value in observer.calculate_qparams())
        return (observer.quant_min - zero_point) * scale * factor, (observer.quant_max - zero_point) * scale * factor


def replace_observers(
    prepared: GraphModule, observers: Collection[int], replacement: Callable[[Any], nn.Module]
) -> None:
    """Replace the observers with these `id()`s, in place, under every name that they have.

    Operations that keep the range, such as max pooling, share one observer under several names.
    """
    made: dict[int, nn.Module] = {}
    for name, module in dict(prepared.named_modules(remove_duplicate=False)).items():
        if id(module) in observers:
            if id(module) not in made:
                made[id(module)] = replacement(module)
            prepared.set_submodule(name, made[id(module)])


def observers_of_input(
    placeholder: Node, observes: Callable[[Node], bool], moves: Callable[[Node], bool]
) -> Iterator[Node]:
    """Yield the nodes that observe an input, directly or after operations that only move its values.

    Args:
        placeholder: the input.
        observes: whether a node is a call of an observer.
        moves: whether a node only moves, repeats, drops or zero-pads values.
    """
    reached = [placeholder]
    while reached:
        for node in reached.pop().users:
            if observes(node):
                yield node
            elif moves(node):
                reached.append(node)


def observers_of_output(
    graph: GraphModule, observes: Callable[[Node], bool], moves: Callable[[Node], bool]
) -> Iterator[Node]:
    """Yield the nodes that observe the output, directly or before operations that only move its values.

    Args:
        graph: a prepared graph.
        observes: whether a node is a call of an observer whose range may change.
        moves: whether a node only moves, repeats, drops or zero-pads values.
    """
    reached = [node for node in graph.graph.nodes if node.op == "output"]
    while reached:
        for node in reached.pop().all_input_nodes:
            if observes(node):
                yield node
            elif moves(node):
                reached.append(node)
