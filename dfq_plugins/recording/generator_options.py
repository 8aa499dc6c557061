"""Options of the generators that rebuild inputs from an activation record. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt

from dfq_plugins.types import setting


@dataclass(frozen=True)
class RecordOptions:
    """Options of every `record-*` generator; the defaults are the paper's constants for MNIST.

    Source: Lopes, Fenu and Starner 2017: Adam, 1,000 steps per batch of 64, inputs that start at N(0.15, 0.1).
    """

    record: str = setting("", "folder that dfq record wrote; required")
    record_sha256: str = setting("", "required checksum of the record; filled in when a set is made")
    iterations: Annotated[int, Gt(0)] = setting(1000, "optimization steps per batch")
    learning_rate: Annotated[float, Gt(0)] = setting(0.07, "Adam learning rate, as a fraction of the valid range")
    start_mean: float = setting(0.15, "mean of the initial noise, as a fraction of the valid range")
    start_std: Annotated[float, Ge(0)] = setting(0.1, "its standard deviation, likewise")
    schedule: Literal["cosine", "constant"] = setting("constant", "schedule of the learning rate")
    step_samples: Annotated[int, Gt(0)] | None = setting(64, "samples per step; none: the whole shard at once")
    clamp: bool = setting(default=True, text="keep the inputs in their valid range during optimization")

    # Required by the shared optimization loop: these inputs are optimized independently, without augmentation.
    plateau: ClassVar[float] = 0.0
    statistics: ClassVar[str] = "batch"
    precision: ClassVar[str] = "float32"
    jitter: ClassVar[int] = 0
    flip: ClassVar[bool] = False
    crop: ClassVar[float] = 1.0
    padding: ClassVar[int] = 0
