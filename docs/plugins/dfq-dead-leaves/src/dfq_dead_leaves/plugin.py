"""Registers the generator "dead-leaves". Imports no torch, so that `dfq plugins` stays fast."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Gt

from dfq_plugins import hookimpl
from dfq_plugins.types import GeneratorEntry


@dataclass(frozen=True)
class DeadLeavesOptions:
    leaves: Annotated[int, Gt(0)] = field(default=100, metadata={"help": "discs in an image"})
    candidates: Annotated[int, Gt(0)] = field(
        default=1, metadata={"help": "images drawn for each one kept: the one the network is most confident about"}
    )


@hookimpl
def dfq_generators() -> Iterator[GeneratorEntry]:
    yield GeneratorEntry(
        name="dead-leaves",
        summary="overlapping discs of all sizes, with the edges of natural images",
        factory="dfq_dead_leaves.generator:DeadLeaves",
        options=DeadLeavesOptions,
    )
