"""Settings of the generators that rebuild inputs from an activation record. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt

from dfq_plugins.types import setting


@dataclass(frozen=True)
class RecordOptions:
    """Settings of every `record-*` generator; the defaults are the paper's constants for MNIST.

    Source: Lopes, Fenu and Starner 2017: Adam, 1,000 steps a batch of 64, inputs that start at N(0.15, 0.1).
    """

    record: str = setting("", "folder that dfq record wrote; must be given")
    record_sha256: str = setting("", "checksum that the record must have; filled in when a set is made")
    iterations: Annotated[int, Gt(0)] = setting(1000, "optimization steps of each batch")
    learning_rate: Annotated[float, Gt(0)] = setting(0.07, "Adam step, as a share of the valid range")
    start_mean: float = setting(0.15, "mean of the noise to start from, as a share of the valid range")
    start_std: Annotated[float, Ge(0)] = setting(0.1, "its standard deviation, as a share of the valid range")
    schedule: Literal["cosine", "constant"] = setting("constant", "how the learning rate falls")
    step_samples: Annotated[int, Gt(0)] | None = setting(64, "samples in one step; none: the whole shard at once")
    clamp: bool = setting(default=True, text="keep the inputs in their valid range during the optimization")

    # What the loop that all generators share asks besides: these inputs are optimized as they are, each for itself.
    plateau: ClassVar[float] = 0.0
    statistics: ClassVar[str] = "batch"
    precision: ClassVar[str] = "float32"
    jitter: ClassVar[int] = 0
    flip: ClassVar[bool] = False
    crop: ClassVar[float] = 1.0
    padding: ClassVar[int] = 0
