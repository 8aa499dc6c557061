"""Settings of the reconstruction. Does not import torch, so listings stay fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt

from dfq_plugins.types import setting

_ROUNDING_TRAVEL = 10.0
_WEIGHT_SCALE_TRAVEL = 0.1
_ACTIVATION_SCALE_TRAVEL = 0.1


@dataclass(frozen=True)
class ReconstructionOptions:
    """How roundings and scales are learned, block by block.

    Rates that are not set follow the number of steps, so that a shorter run covers the same distance. Those of scales
    are shares of each scale.
    """

    steps: Annotated[int, Gt(0)] = setting(400, "training steps per block")
    samples: Annotated[int, Gt(0)] = setting(1024, "most samples to learn from: the first ones of the data")
    max_megabytes: Annotated[float, Gt(0)] = setting(
        4096.0, "memory for the values between blocks; networks with large ones learn from fewer samples"
    )
    batch_size: Annotated[int, Gt(0)] = setting(32, "samples per step")
    learned_rounding: bool = setting(default=True, text="learn whether each weight is rounded up or down")
    learned_scales: bool = setting(default=True, text="learn the scales of weights and activations")
    drop: Annotated[float, Ge(0), Le(1)] = setting(
        0.5, "probability that a step sees a value in float instead of quantized (QDrop)"
    )
    rounding_rate: Annotated[float, Gt(0)] | None = setting(
        None, f"Adam step size of the roundings; none: {_ROUNDING_TRAVEL:g} / steps"
    )
    weight_scale_rate: Annotated[float, Ge(0)] | None = setting(
        None, f"Adam step size of weight scales, as a share of each; none: {_WEIGHT_SCALE_TRAVEL:g} / steps"
    )
    activation_scale_rate: Annotated[float, Ge(0)] | None = setting(
        None, f"Adam step size of activation scales, as a share of each; none: {_ACTIVATION_SCALE_TRAVEL:g} / steps"
    )
    regularization: Annotated[float, Ge(0)] = setting(
        300.0, "weight of the term that drives roundings to 0 or 1, in units of the block's first error"
    )
    warm_up: Annotated[float, Ge(0), Lt(1)] = setting(0.2, "share of the steps before that term sets in")
    max_seconds: Annotated[float, Gt(0)] | None = setting(
        None, "maximum seconds for all blocks; if their steps would take longer, each block gets fewer"
    )
    seed: Annotated[int, Ge(0)] = setting(0, "seed of batches and dropping")

    def rates(self, steps: int) -> tuple[float, float, float]:
        """Return the step sizes of roundings, weight scales and activation scales for a number of steps.

        >>> ReconstructionOptions(weight_scale_rate=0.5).rates(400)
        (0.025, 0.5, 0.00025)
        """
        pairs = (
            (self.rounding_rate, _ROUNDING_TRAVEL),
            (self.weight_scale_rate, _WEIGHT_SCALE_TRAVEL),
            (self.activation_scale_rate, _ACTIVATION_SCALE_TRAVEL),
        )
        rounding, weights, activations = (travel / steps if rate is None else rate for rate, travel in pairs)
        return rounding, weights, activations
