"""Options of a recording. Imports no torch."""

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
    """The statistics to record, the layers, and the amount of noise.

    Raises:
        UsageError: there are no statistics, or there are dropout filters without the statistics of all layers.
    """

    statistics: tuple[Statistic, ...] = setting(STATISTICS, "statistics to record")
    layers: tuple[str, ...] = setting((), "modules whose inputs to record; none: every weighted layer but the first")
    units: Literal["full", "channel"] = setting(
        "full", "definition of a unit: every activation, or the mean over a channel's positions"
    )
    temperature: Annotated[float, Gt(0)] = setting(TEMPERATURE, "divisor of the logits")
    coefficients: Annotated[float, Gt(0), Le(1)] = setting(0.1, "fraction of the graph's Fourier coefficients to keep")
    graph: Literal["co-activation", "mean-activation"] = setting(
        "co-activation", "edge weights of the graph: mean product of two units, or product of their means"
    )
    labels: Literal["auto", "teacher"] = setting("auto", "class labels; auto: those of the data, if any")
    dropout_filters: Annotated[int, Ge(0)] = setting(0, "number of dropout filters to record all layers with")
    seed: int = setting(0, "seed of the dropout filters")
    epsilon: Annotated[float, Gt(0)] | None = setting(None, "privacy budget of the noise; none adds no noise")
    delta: Annotated[float, Gt(0), Lt(1)] = setting(1e-5, "probability that the privacy budget fails")
    clip_norm: Annotated[float, Gt(0)] | None = setting(
        None, "maximum norm of a sample's units if noise is added; none: median norm of noise inputs"
    )
    max_memory: Annotated[float, Gt(0)] = setting(2.0, "maximum memory of the statistics, in GiB")

    def __post_init__(self) -> None:
        if not self.statistics:
            raise UsageError(f"A recording needs at least one statistic. Choose from {', '.join(STATISTICS)}.")
        if self.dropout_filters and "all" not in self.statistics:
            raise UsageError(
                "Dropout filters need the statistics of all layers, but the statistics are "
                f"{', '.join(self.statistics)}. Add 'all' to the statistics, or omit dropout_filters."
            )

    @property
    def spectral(self) -> bool:
        """Whether a recorded statistic needs the joint covariance of all layers' units."""
        return bool({"spectral", "spectral-pairs"} & set(self.statistics))
