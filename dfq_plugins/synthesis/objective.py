"""The objective of inversion generators on a frozen network."""

from __future__ import annotations

import copy
import logging
import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dfq_plugins.model_state import device_of
from dfq_plugins.network.memory import halves, is_out_of_memory, note_halving
from dfq_plugins.network.outputs import require_logits
from dfq_plugins.network.precision import use_bfloat16
from dfq_plugins.statistics.augmentation import apply_maps
from dfq_plugins.statistics.batch_norm import StatisticsHooks, require_reached_layers, stored_statistics
from dfq_plugins.statistics.divergences import DIVERGENCES
from dfq_plugins.synthesis import terms as objectives
from dfq_plugins.synthesis.compilation import explained_failure, remember_compiled
from dfq_plugins.synthesis.fast_layers import freeze_norms, native_pooling

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfq_plugins.statistics.augmentation import AxisMaps
    from dfq_plugins.statistics.moments import Moments
    from dfq_plugins.synthesis.options import InversionOptions
    from dfq_plugins.types import InputSpec

logger = logging.getLogger(__name__)

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class InversionObjective:
    """Weighted sum of the BatchNorm divergence, a class term and priors, for one frozen network.

    Args:
        model: frozen network; it is copied, and the copy is cast to the precision of the options.
        spec: the input specification; a standardized input adds the input pseudo-layer to the divergence.
        options: weights of the terms, and the precision.

    Raises:
        ModelError: the divergence has a weight, but a forward pass calls no BatchNorm layer.
    """

    def __init__(self, model: nn.Module, spec: InputSpec, options: InversionOptions) -> None:
        self.options, self.num_classes = options, spec.num_classes
        self.device = device_of(model)
        self.half = use_bfloat16(options.precision, self.device)
        self.model = _convert(native_pooling(freeze_norms(copy.deepcopy(model))), self.half)
        self.fill = torch.tensor(spec.pad_value, device=self.device)
        self.matches = options.batch_norm_weight > 0
        if self.matches:
            names = require_reached_layers(model, spec)
            self.stored = stored_statistics(model, spec, names)
            self.hooks = StatisticsHooks(self.model, spec, names)
            self.hooks.open()  # on our copy, so they stay attached as long as it exists
        self._compiled: Callable[..., tuple[Tensor, Tensor]] | None = None
        self._halves = False
        self._compiles = False
        self._compiler_works = True
        self._step_seconds: float | None = None
        self._compiled_shapes: set[tuple[int, ...]] = set()
        self._warm: set[bool] = set()  # which of the plain (False) and compiled (True) steps have run

    def __call__(
        self, inputs: Tensor, labels: Tensor, rest: tuple[Tensor, float] | None, maps: AxisMaps = ()
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss, its gradient `(batch, *shape)`, and the batch's raw moments `(2, channels)`, all detached.

        Args:
            inputs: `(batch, *shape)`, float32.
            labels: `(batch,)`.
            rest: raw moments of the other batches and this batch's share of the whole; None for a single batch.
            maps: augmentation of the inputs; gradients flow through it.
        """
        others, share = rest if rest is not None else (self.empty_pool(), 1.0)
        arguments = (maps, labels, (1 - share) * others, inputs.new_full((), share))
        if not self._halves:
            try:
                return self._step(inputs, *arguments)
            except Exception as error:
                if not is_out_of_memory(error) or len(inputs) < 2:  # noqa: PLR2004  one sample has no halves
                    raise
            # Outside the handler, so that the failed pass is freed: until then the traceback keeps its tensors alive.
            self._forget_calls()
            self._halves = True
            note_halving(len(inputs))
        return self._step_in_halves(inputs, *arguments)

    def _step(self, inputs: Tensor, *arguments: Tensor | AxisMaps) -> tuple[Tensor, Tensor, Tensor]:
        if self._compiles:
            # The compiler compiles the backward pass when it first runs, so both passes are guarded together.
            try:
                return self._record_compiled(self._compiled_step(inputs, *arguments))
            except Exception as error:  # whatever the compiler raises, the uncompiled step works
                if is_out_of_memory(error):
                    raise
                logger.warning("%s", explained_failure(error))
                self._compiler_works = self._compiles = False
                self._forget_calls()
        return _loss_and_gradient(self._loss, inputs, *arguments)

    def _step_in_halves(
        self, inputs: Tensor, maps: AxisMaps, labels: Tensor, rest: Tensor, share: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Take the same step in half the memory: first the moments of both halves, then the gradient of each.

        With weights w_i, the share of the samples in half i, the moments of the batch are m = sum(w_i m_i), and the
        gradient of the loss L(m) for half i is w_i L'(m) dm_i: that of a separate batch whose moments are m.
        """
        parts = [(part, tuple(moved), wanted) for part, wanted, *moved in halves(inputs, labels, *maps)]
        weights = [len(part) / len(inputs) for part, _, _ in parts]
        with torch.no_grad():
            moments = [self._loss(*part, rest, share)[1] for part in parts]
        whole = torch.stack([weight * raw for weight, raw in zip(weights, moments, strict=True)]).sum(0)
        rests = [share * (whole - raw) + rest for raw in moments]
        steps = [self._step(*part, other, share) for part, other in zip(parts, rests, strict=True)]
        loss = torch.stack([weight * step[0] for weight, step in zip(weights, steps, strict=True)]).sum()
        return loss, torch.cat([weight * step[1] for weight, step in zip(weights, steps, strict=True)]), whole

    def use_compiled(self, wanted: bool) -> None:
        """Choose between the compiled and the plain step; if compilation fails, the plain one is used."""
        self._compiles = wanted and self._compiler_works

    @property
    def is_compiled(self) -> bool:
        """Whether a compiled step exists."""
        return self._compiled is not None and self._compiler_works

    def plain_step_seconds(self, inputs: Tensor, labels: Tensor, maps: AxisMaps = ()) -> float:
        """Return the time of one uncompiled step on such a batch, measured once."""
        if self._step_seconds is None:
            self.use_compiled(wanted=False)
            self.warm_up(inputs, labels, maps)
            began = time.monotonic()
            loss, _, _ = self(inputs, labels, None, maps)
            float(loss)
            self._step_seconds = time.monotonic() - began
        return self._step_seconds

    def warm_up(self, inputs: Tensor, labels: Tensor, maps: AxisMaps = ()) -> None:
        """Run one step and discard its result, to compile it or select kernels; later calls do nothing."""
        if self._compiles not in self._warm:
            float(self(inputs, labels, None, maps)[0])
            self._warm.add(self._compiles)

    def description(self, inputs: Tensor) -> str:
        """Return everything that the code of the compiled step depends on: structure and shapes, but not weights."""
        environment = (torch.__version__, inputs.device.type, torch.get_num_threads())
        return f"{environment} {tuple(inputs.shape)} {self.options} {self.model}"

    def _record_compiled(self, step: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Record once per shape that its step has been compiled; return the step's results."""
        shape = tuple(step[1].shape)
        if shape not in self._compiled_shapes:
            self._compiled_shapes.add(shape)
            remember_compiled(self.description(step[1]))
        return step

    def _forget_calls(self) -> None:
        if self.matches:
            self.hooks.forget()

    def _compiled_step(self, inputs: Tensor, *arguments: Tensor | AxisMaps) -> tuple[Tensor, Tensor, Tensor]:
        on_gpu = inputs.is_cuda
        if self._compiled is None:
            mode = "reduce-overhead" if on_gpu else None  # one recorded launch instead of hundreds
            self._compiled = torch.compile(self._loss, dynamic=False, mode=mode)
        if not on_gpu:
            return _loss_and_gradient(self._compiled, inputs, *arguments)
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        loss, gradient, moments = _loss_and_gradient(self._compiled, inputs, *arguments)
        return loss.clone(), gradient.clone(), moments.clone()  # the next replay overwrites these results

    def evaluate_once(self, inputs: Tensor, labels: Tensor, maps: AxisMaps = ()) -> Tensor:
        """Return the loss of one batch without compiling anything."""
        loss, _ = self._loss(inputs, maps, labels, self.empty_pool(), inputs.new_ones(()))
        return loss

    def empty_pool(self) -> Tensor:
        """Return the raw moments of no samples, shape `(2, channels)`."""
        return torch.zeros(2, len(self.stored.mean) if self.matches else 0, device=self.device)

    def rest_of(self, pools: list[Tensor], index: int) -> tuple[Tensor, float] | None:
        """Return the mean raw moments of the other batches seen so far, and the share of batch `index`."""
        others = [pool for i, pool in enumerate(pools) if i != index and bool(pool[1].any())]
        if not others:
            return None
        return torch.stack(others).mean(0), 1 / (len(others) + 1)

    def _loss(
        self, inputs: Tensor, maps: AxisMaps, labels: Tensor, rest: Tensor, share: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the loss of a batch and its raw moments; `share` times these plus `rest` is matched."""
        options = self.options
        inputs = apply_maps(inputs, maps, self.fill)
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=self.half):
            returned = self.model(inputs)
        loss, pool = inputs.new_zeros(()), rest
        if self.matches:
            moments = self.hooks.collect(inputs)
            loss, pool = self._divergence(moments, rest, share)
        if options.class_weight:
            term = objectives.class_logit if options.class_loss == "logit" else objectives.class_cross_entropy
            loss = loss + options.class_weight * term(require_logits(returned, self.num_classes), labels)
        for weight, prior in (
            (options.blur_weight, objectives.blur_difference),
            (options.total_variation_weight, objectives.total_variation),
            (options.l2_weight, objectives.squared_norm),
        ):
            if weight:
                loss = loss + weight * prior(inputs)
        return loss, pool

    def _divergence(self, moments: Moments, rest: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        stored = self.stored
        # Raw moments are taken about the stored mean, so that they pool by averaging without loss of accuracy.
        offset = moments.mean - stored.mean
        raw = torch.stack([offset, moments.var + offset.square()])
        pooled = share * raw + rest
        mean, var = stored.mean + pooled[0], (pooled[1] - pooled[0].square()).clamp_min(0)
        distance = DIVERGENCES[self.options.divergence](stored.mean, stored.var + stored.eps, mean, var + stored.eps)
        return self.options.batch_norm_weight * (stored.weight * distance).sum(), raw


def _loss_and_gradient(
    function: Callable[..., tuple[Tensor, Tensor]], inputs: Tensor, *arguments: Tensor | AxisMaps
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the function's loss, the gradient of the inputs, and the function's second value."""
    leaf = inputs.detach().requires_grad_()
    loss, pool = function(leaf, *arguments)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient, pool.detach()


def _convert(model: nn.Module, half: bool) -> nn.Module:
    """Convert the copy to channels-last and, for bfloat16, convert its convolution and linear layers to that type."""
    if any(isinstance(module, nn.Conv2d) for module in model.modules()):
        model = model.to(memory_format=torch.channels_last)
    if half:
        for module in model.modules():
            if isinstance(module, (*_CONVOLUTIONS, nn.Linear)):
                module.to(torch.bfloat16)
    return model
