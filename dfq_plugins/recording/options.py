"""Settings of a recording. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias, get_args

from annotated_types import Ge, Gt, Le, Lt

from dfq_plugins.errors import UsageError
from dfq_plugins.types import setting

Statistic: TypeAlias = Literal["top", "all", "spectral", "spectral-pairs"]
Units: TypeAlias = Literal["full", "channel"]
Graph: TypeAlias = Literal["co-activation", "mean-activation"]

STATISTICS: tuple[Statistic, ...] = get_args(Statistic)
TEMPERATURE = 8.0
"""Temperature of the logits, as in the paper."""


@dataclass(frozen=True)
class RecordingOptions:
    """What is recorded, of which layers, and with how much noise.

    Raises:
        UsageError: dropout filters without the statistics of all layers, which are what they are recorded for.
    """

    statistics: tuple[Statistic, ...] = setting(STATISTICS, "which statistics to record")
    layers: tuple[str, ...] = setting((), "modules whose inputs to record; none: every weighted layer but the first")
    units: Literal["full", "channel"] = setting(
        "full", "what a unit is: every single activation, or the mean over a channel's places"
    )
    temperature: Annotated[float, Gt(0)] = setting(TEMPERATURE, "what the logits are divided by")
    coefficients: Annotated[float, Gt(0), Le(1)] = setting(0.1, "share of the graph's Fourier coefficients to keep")
    graph: Literal["co-activation", "mean-activation"] = setting(
        "co-activation", "weights of the graph's edges: mean product of two units, or product of their means"
    )
    labels: Literal["auto", "teacher"] = setting("auto", "classes of the data, or auto: its labels where it has any")
    dropout_filters: Annotated[int, Ge(0)] = setting(0, "dropout filters to record all layers under")
    seed: int = setting(0, "seed of the dropout filters")
    epsilon: Annotated[float, Gt(0)] | None = setting(None, "privacy budget of the noise; none adds no noise")
    delta: Annotated[float, Gt(0), Lt(1)] = setting(1e-5, "probability of the privacy budget's failure")
    clip_norm: Annotated[float, Gt(0)] | None = setting(
        None, "longest vector of a sample's units, where noise is added; none: that of noise inputs"
    )
    max_memory: Annotated[float, Gt(0)] = setting(2.0, "most memory that the statistics may take, in GiB")

    def __post_init__(self) -> None:
        if not self.statistics:
            raise UsageError(f"A recording needs at least one statistic. Choose of {', '.join(STATISTICS)}.")
        if self.dropout_filters and "all" not in self.statistics:
            raise UsageError(
                f"Dropout filters change the statistics of all layers, and only {', '.join(self.statistics)} is "
                "recorded. Add 'all' to the statistics, or leave dropout_filters out."
            )

    @property
    def spectral(self) -> bool:
        """Whether a statistic is recorded that needs the covariance of all layers' units together."""
        return bool({"spectral", "spectral-pairs"} & set(self.statistics))
