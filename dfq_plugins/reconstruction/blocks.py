"""Finds the blocks of a network: the parts between the places where as little as possible flows on.

A place is a *cut* if everything that flows across it can be stored: floating-point tensors, sample by sample. Where a
single tensor flows on, a residual block, a stage or a single layer has ended. A part between two such places that has
many layers, as in a network with long skip connections, is divided at its other cuts, into single layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dfq_plugins.reconstruction.graph import GraphRunner
    from dfq_plugins.types import QuantizedLayer

MOST_LAYERS = 8
"""Layers with weights in a block; parts with more are divided."""

MOST_EXPANDED = 4
EXPANSION = 2
"""At most four parts are one block if the values between them are more than twice as many as in front of them."""


@dataclass(frozen=True)
class Block:
    """A part of the network that is learned at once.

    Args:
        nodes: names of its nodes, in order.
        inputs: names of the stored values that it reads.
        outputs: names of the stored values that it computes for later blocks, or as the network's outputs.
        live: names of the stored values that later blocks read, or that are the network's outputs.
        layers: its quantized layers, in order, each once.
    """

    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    live: tuple[str, ...]
    layers: tuple[QuantizedLayer, ...]

    @property
    def name(self) -> str:
        """The names of its first and last layer with weights."""
        names = [layer.name for layer in self.layers if layer.weight is not None]
        return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"


def find_blocks(runner: GraphRunner, layers: Sequence[QuantizedLayer]) -> tuple[Block, ...]:
    """Return the blocks in order; each has at least one layer with weights."""
    finder = _Finder(runner, {id(layer.module): layer for layer in layers})
    return tuple(finder.block(start, end) for start, end in finder.ranges())


class _Finder:
    def __init__(self, runner: GraphRunner, layers: Mapping[int, QuantizedLayer]) -> None:
        self.runner, self.layers = runner, layers
        self.position = {name: index for index, name in enumerate(runner.order)}
        self.position |= dict.fromkeys(runner.placeholders, -1)
        self.last_read = dict.fromkeys(self.position, -1)
        for name in runner.order:
            for source in runner.nodes[name].all_input_nodes:
                if source.name in self.position:
                    self.last_read[source.name] = self.position[name]
        for name in runner.outputs:
            self.last_read[name] = len(runner.order)

    def live(self, cut: int) -> list[str]:
        """Return the names of the values that flow across a cut, in front of the node at that index."""
        return [name for name, index in self.position.items() if index < cut <= self.last_read[name]]

    def ranges(self) -> list[tuple[int, int]]:
        """Return the first and the last index, exclusive, of each block."""
        cuts = self._cuts()
        parts: list[tuple[int, int]] = []
        single = [cut for cut in cuts if len(self.live(cut)) <= 1 or cut in (0, len(self.runner.order))]
        for start, end in pairwise(single):
            inner = [cut for cut in cuts if start <= cut <= end]
            divided = len(self._within(start, end)[1]) > MOST_LAYERS
            parts += pairwise(inner) if divided else [(start, end)]
        return self._without_expansions(self._with_weights(parts))

    def block(self, start: int, end: int) -> Block:
        names = self.runner.order[start:end]
        read = {source.name for name in names for source in self.runner.nodes[name].all_input_nodes}
        live = [name for name in self.live(end) if self.runner.is_stored(name)]
        return Block(
            nodes=tuple(names),
            inputs=tuple(name for name in self.live(start) if name in read),
            outputs=tuple(name for name in live if name in set(names)),
            live=tuple(live),
            layers=tuple(self._within(start, end)[0]),
        )

    def _cuts(self) -> list[int]:
        end = len(self.runner.order)
        found = [end]
        for cut in reversed(range(1, end)):
            if all(map(self.runner.is_stored, self.live(cut))) and self._runs_from(cut, found[0]):
                found.insert(0, cut)
        return [0, *found]

    @torch.no_grad()
    def _runs_from(self, start: int, end: int) -> bool:
        """Return whether the next part computes the same from torch's tensors as from the framework's."""
        values, plain = self.runner.values, self.runner.plain
        live = self.live(start)
        if all(plain(values[name]) is values[name] for name in live):
            return True
        try:
            found = self.runner.run(self.runner.order[start:end], {name: plain(values[name]) for name in live})
        except Exception:  # noqa: BLE001  a framework's layer may insist on the framework's tensors
            return False
        pairs = [(plain(found[name]), plain(values[name])) for name in self.live(end) if self.runner.is_stored(name)]
        return all(torch.equal(one, other) for one, other in pairs)

    def _within(self, start: int, end: int) -> tuple[list[QuantizedLayer], list[QuantizedLayer]]:
        """Return the quantized layers of a part, and those of them with weights."""
        nodes = [self.runner.nodes[name] for name in self.runner.order[start:end]]
        called = [self.layers.get(id(self.runner.module(node))) for node in nodes if node.op == "call_module"]
        every = list({id(layer.module): layer for layer in called if layer is not None}.values())
        return every, [layer for layer in every if layer.weight is not None]

    def _with_weights(self, parts: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Join parts without weights with the one before if they are elementwise in float, otherwise with the next.

        So a block ends with an activation, but not with a pooling, which hides most of its errors.
        """
        found: list[tuple[int, int]] = []
        waiting: int | None = None
        for start, end in parts:
            every, weighted = self._within(start, end)
            first = start if waiting is None else waiting
            if weighted:
                found.append((first, end))
                waiting = None
            elif found and waiting is None and not every and self._width(start) == self._width(end):
                found[-1] = (found[-1][0], end)
            else:
                waiting = first
        if waiting is not None and found:
            found[-1] = (found[-1][0], parts[-1][1])
        return found

    def _without_expansions(self, parts: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Join parts between which the values are expanded: an inverted bottleneck without an addition."""
        found: list[tuple[int, int]] = []
        index = 0
        while index < len(parts):
            length = self._expanded(parts[index : index + MOST_EXPANDED])
            found.append((parts[index][0], parts[index + length - 1][1]))
            index += length
        return found

    def _expanded(self, parts: list[tuple[int, int]]) -> int:
        """Return over how many parts, from the first on, the values are expanded; 1 if they are not.

        The network's inputs and outputs are narrow, too, so the first and the last part stay apart.
        """
        narrow = EXPANSION * self._width(parts[0][0])
        for length, (_, end) in enumerate(parts, start=1):
            if self._width(end) <= narrow:
                return length if parts[0][0] > 0 and end < len(self.runner.order) else 1
        return 1

    def _width(self, cut: int) -> int:
        return sum(self.runner.values_in(name) for name in self.live(cut) if self.runner.is_stored(name))
