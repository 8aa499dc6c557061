"""What inversion generators share: the objective over a frozen network, the starting inputs, and the run itself."""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dfq_plugins import objectives
from dfq_plugins.divergences import DIVERGENCES
from dfq_plugins.statistics import Moments, StatisticsTaps, stored_statistics

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfq_plugins.generators.options import InversionOptions
    from dfq_plugins.types import InputSpec

logger = logging.getLogger(__name__)

COMPILE_WORTH = 2e12
"""Multiply-accumulates of a shard's whole optimisation above which a compiled step repays its compilation."""


class InversionObjective:
    """Weighted sum of the BatchNorm divergence, a class term and priors, for one frozen network.

    Args:
        model: frozen network; a copy is taken, and cast to the precision of the options.
        spec: the input; a standardized one adds the input pseudo-layer to the divergence.
        options: weights of the terms, precision.
    """

    def __init__(self, model: nn.Module, spec: InputSpec, options: InversionOptions) -> None:
        self.options = options
        self.half = use_bfloat16(options.precision, next(model.parameters()).device)
        self.model = _cast(copy.deepcopy(model), self.half)
        self.matches = options.batch_norm_weight > 0
        self.taps = StatisticsTaps(self.model, spec)
        if self.matches:
            self.stored = stored_statistics(model, spec)
            self.taps.__enter__()  # the copy is ours: its hooks live as long as it does
        self._evaluate: Callable[..., tuple[Tensor, Tensor]] = self._loss

    def __call__(self, inputs: Tensor, labels: Tensor, rest: tuple[Tensor, float] | None) -> tuple[Tensor, Tensor]:
        """Return the loss and the batch's raw moments `(2, channels)`, detached.

        Args:
            inputs: `(batch, *shape)`, float32.
            labels: `(batch,)`.
            rest: raw moments of the other batches and this batch's share of the whole; None for the batch alone.
        """
        others, share = rest if rest is not None else (self.empty_pool(), 1.0)
        loss, pool = self._evaluate(inputs, labels, others, torch.tensor(share, device=inputs.device))
        return loss, pool.detach()

    def compile(self) -> None:
        """Compile the step; where that fails, go on uncompiled and say so once."""
        compiled = torch.compile(self._loss, dynamic=False)

        def evaluate(*arguments: Tensor) -> tuple[Tensor, Tensor]:
            try:
                return compiled(*arguments)
            except Exception as error:  # noqa: BLE001  whatever the compiler raises, the uncompiled step is right
                logger.warning("Compilation failed (%s: %s); going on uncompiled.", type(error).__name__, error)
                self._evaluate = self._loss
                return self._loss(*arguments)

        self._evaluate = evaluate

    def evaluate_once(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of one batch without compiling anything."""
        loss, _ = self._loss(inputs, labels, self.empty_pool(), inputs.new_ones(()))
        return loss

    def empty_pool(self) -> Tensor:
        """Return raw moments of nothing, shape `(2, channels)`."""
        return torch.zeros(2, len(self.stored.mean) if self.matches else 0, device=next(self.model.parameters()).device)

    def rest_of(self, pools: list[Tensor], index: int) -> tuple[Tensor, float] | None:
        """Return the mean raw moments of the other batches seen so far, and the share of batch `index`."""
        others = [pool for i, pool in enumerate(pools) if i != index and bool(pool[1].any())]
        if not others:
            return None
        return torch.stack(others).mean(0), 1 / (len(others) + 1)

    def _loss(self, inputs: Tensor, labels: Tensor, others: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        options = self.options
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=self.half):
            logits = self.model(inputs)
        loss, pool = inputs.new_zeros(()), others
        if self.matches:
            moments = self.taps.collect(inputs)
            loss, pool = self._divergence(moments, others, share)
        if options.class_weight:
            term = objectives.class_logit if options.class_loss == "logit" else objectives.class_cross_entropy
            loss = loss + options.class_weight * term(logits.float(), labels)
        for weight, prior in (
            (options.blur_weight, objectives.blur_difference),
            (options.total_variation_weight, objectives.total_variation),
            (options.l2_weight, objectives.squared_norm),
        ):
            if weight:
                loss = loss + weight * prior(inputs)
        return loss, pool

    def _divergence(self, moments: Moments, others: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        stored = self.stored
        # Raw moments are taken about the stored mean: they pool by averaging, and stay exact.
        offset = moments.mean - stored.mean
        raw = torch.stack([offset, moments.var + offset.square()])
        pooled = share * raw + (1 - share) * others
        mean, var = stored.mean + pooled[0], (pooled[1] - pooled[0].square()).clamp_min(0)
        distance = DIVERGENCES[self.options.divergence](stored.mean, stored.var + stored.eps, mean, var + stored.eps)
        return self.options.batch_norm_weight * (stored.weight * distance).sum(), raw


def use_bfloat16(precision: str, device: torch.device) -> bool:
    """Tell whether to compute in bfloat16: where asked for, or where the hardware has instructions for it."""
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())  # noqa: SLF001  no public test yet


def _cast(model: nn.Module, half: bool) -> nn.Module:
    """Put the copy in channels-last and, for bfloat16, its convolution and linear weights in that type."""
    if any(isinstance(module, nn.Conv2d) for module in model.modules()):
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if half:
        for module in model.modules():
            if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
                module.to(torch.bfloat16)
    return model


def compile_pays(model: nn.Module, spec: InputSpec, samples: int, options: InversionOptions) -> bool:
    """Tell whether compiling repays itself: decided by the work of one shard alone, so that it is reproducible."""
    if options.compile != "auto":
        return options.compile == "always"
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, *spec.shape, device=next(model.parameters()).device))
    passes = 2  # forward, and the gradient of the input
    return counter.get_total_flops() / 2 * passes * samples * options.iterations > COMPILE_WORTH
