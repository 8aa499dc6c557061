"""Lets a quantizer that several tensors share cover all of them.

Brevitas averages the statistic over all calls of a quantizer. Where an addition's branches differ in range, that
average cuts off the wider one. Here each call of a pass has its own average over the batches, and the largest counts.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from dfq_brevitas.framework import ParameterFromRuntimeStatsScaling, quant_nn
from dfq_plugins.model_state import hooked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor
    from torch.utils.hooks import RemovableHandle

    from dfq_brevitas.framework import GraphModule


@dataclass(eq=False)
class _Calls:
    """The statistics of a shared quantizer, apart for each of its calls in a pass."""

    scaling: Any
    collected: list[tuple[Tensor, int]] = field(default_factory=list)
    position: int = 0
    depth: int = 0
    """How many calls deep: a search for the best range calls the scale that it is searched for."""

    def enter(self, *_: object) -> None:
        """Go on with the statistic of this call."""
        self.depth += 1
        if self.depth > 1:
            return
        if self.position == len(self.collected):
            self.collected.append((torch.ones_like(self.scaling.buffer), 0))
        buffer, self.scaling.counter = self.collected[self.position]
        self.scaling.buffer.copy_(buffer)

    def leave(self, *_: object) -> None:
        """Keep the statistic of this call."""
        self.depth -= 1
        if self.depth:
            return
        self.collected[self.position] = (self.scaling.buffer.clone(), self.scaling.counter)
        self.position += 1

    def restart(self, *_: object) -> None:
        """Begin another pass."""
        self.position = self.depth = 0

    def conclude(self) -> None:
        """Give the quantizer the largest of its calls' statistics."""
        seen = [(buffer, counter) for buffer, counter in self.collected if counter]
        if seen:
            self.scaling.buffer.copy_(torch.stack([buffer for buffer, _ in seen]).amax(0))
            self.scaling.counter = max(counter for _, counter in seen)


@contextmanager
def covering_every_call(graph: GraphModule) -> Iterator[None]:
    """Within the block, which collects statistics over the batches, keep the calls of shared quantizers apart."""
    shared = [_Calls(scaling) for scaling in _shared_scalings(graph).values()]
    with ExitStack() as stack:
        for calls in shared:
            stack.enter_context(hooked(_hooks(graph, calls)))
        yield
    with torch.no_grad():
        for calls in shared:
            calls.conclude()


def _hooks(graph: GraphModule, calls: _Calls) -> Iterator[RemovableHandle]:
    yield graph.register_forward_pre_hook(calls.restart)
    yield calls.scaling.register_forward_pre_hook(calls.enter)
    yield calls.scaling.register_forward_hook(calls.leave)


def _shared_scalings(graph: GraphModule) -> dict[int, Any]:
    """Return the scales of the quantizers that the graph calls more than once in a pass, each once."""
    called: dict[int, int] = {}
    found: dict[int, Any] = {}
    for node in graph.graph.nodes:
        module: Any = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(module, quant_nn.QuantIdentity):
            continue
        scaling = getattr(module.act_quant.fused_activation_quant_proxy.tensor_quant, "scaling_impl", None)
        if isinstance(scaling, ParameterFromRuntimeStatsScaling):
            called[id(scaling)] = called.get(id(scaling), 0) + 1
            found[id(scaling)] = scaling
    return {key: scaling for key, scaling in found.items() if called[key] > 1}
