"""Registers the generator "ascent". Imports no torch, so that `dfq plugins` stays fast."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Gt

from dfq_plugins import hookimpl
from dfq_plugins.types import LearningGeneratorEntry


@dataclass(frozen=True)
class AscentOptions:
    step_size: Annotated[float, Gt(0)] = field(default=0.05, metadata={"help": "how far a value moves at once"})
    student_steps: Annotated[int, Gt(0)] = field(
        default=5, metadata={"help": "steps of the student for one of the images"}
    )


@hookimpl
def dfq_learning_generators() -> Iterator[LearningGeneratorEntry]:
    yield LearningGeneratorEntry(
        name="ascent",
        summary="noise that climbs to where student and teacher disagree",
        factory="dfq_ascent.generator:Ascent",
        options=AscentOptions,
    )
