"""The objective of inversion generators on a frozen network."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dfq_plugins.errors import first_line
from dfq_plugins.inputs import blank_inputs, count, device_of_inputs, joined, leaves, like, map_inputs
from dfq_plugins.model_state import device_of
from dfq_plugins.network.memory import halves, is_out_of_memory, note_halving
from dfq_plugins.network.outputs import require_logits
from dfq_plugins.network.precision import use_bfloat16
from dfq_plugins.private_copy import private_copy
from dfq_plugins.statistics.augmentation import apply_maps
from dfq_plugins.statistics.batch_norm import (
    StatisticsHooks,
    functional_layers,
    require_reached_layers,
    stored_statistics,
)
from dfq_plugins.synthesis import terms as objectives
from dfq_plugins.synthesis.compilation import explained_failure, remember_compiled
from dfq_plugins.synthesis.fast_layers import freeze_norms, native_pooling

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfq_plugins.statistics.moments import Moments
    from dfq_plugins.synthesis.options import InversionOptions
    from dfq_plugins.types import Inputs, Specification

logger = logging.getLogger(__name__)

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_IMAGE = 3
"""Axes of an image: channels, height, width."""

_TRIAL_SAMPLES = 2


class InversionObjective:
    """Weighted sum of the BatchNorm divergence, a class term and priors, for one frozen network.

    Args:
        model: frozen network; it is copied, and the copy is cast to the precision of the options.
        spec: the input specification; a standardized input adds the input pseudo-layer to the divergence.
        options: weights of the terms, and the precision.

    Raises:
        ModelError: the divergence has a weight, but a forward pass calls no BatchNorm layer.
    """

    def __init__(self, model: nn.Module, spec: Specification, options: InversionOptions) -> None:
        self.options, self.num_classes = options, spec.num_classes
        self.spec = spec
        self.device = device_of(model)
        self.model, self.half, self.layout = _working_copy(model, spec, use_bfloat16(options.precision, self.device))
        self.fill = spec.map(lambda one: torch.tensor(one.pad_value, device=self.device))
        self._no_maps = spec.map(lambda _: ())
        self.matches = options.batch_norm_weight > 0
        self._compiler_works = True
        if self.matches:
            names = require_reached_layers(model, spec)
            self.stored = stored_statistics(model, spec, names)
            functional = functional_layers(model, spec, names)
            self.hooks = StatisticsHooks(self.model, spec, names, modules_only=not functional)
            self.hooks.open()  # on our copy, so they stay attached as long as it exists
            self._compiler_works = not functional
        self._compiled: Callable[..., tuple[Tensor, Tensor]] | None = None
        self._halves = False
        self._compiles = False
        self._step_seconds: float | None = None
        self._compiled_shapes: set[str] = set()
        self._warm: set[bool] = set()  # which of the plain (False) and compiled (True) steps have run

    def __call__(
        self, inputs: Inputs, labels: Tensor, rest: tuple[Tensor, float] | None, maps: Any = None
    ) -> tuple[Tensor, Inputs, Tensor]:
        """Return the loss, its gradient `(batch, *shape)`, and the batch's raw moments `(2, channels)`, all detached.

        Args:
            inputs: `(batch, *shape)`, float32; the gradient has the same form.
            labels: `(batch,)`.
            rest: raw moments of the other batches and this batch's share of the whole; None for a single batch.
            maps: augmentation of each input, in the form of the inputs; gradients flow through it. None for none.
        """
        others, share = rest if rest is not None else (self.empty_pool(), 1.0)
        share_tensor = torch.full((), share, device=device_of_inputs(inputs))
        arguments = (self._no_maps if maps is None else maps, labels, (1 - share) * others, share_tensor)
        if not self._halves:
            try:
                return self._step(inputs, *arguments)
            except Exception as error:
                if not is_out_of_memory(error) or count(inputs) < 2:  # noqa: PLR2004  one sample has no halves
                    raise
            # Outside the handler, so that the failed pass is freed: until then the traceback keeps its tensors alive.
            self._forget_calls()
            self._halves = True
            note_halving(count(inputs))
        return self._step_in_halves(inputs, *arguments)

    def _step(self, inputs: Inputs, *arguments: Any) -> tuple[Tensor, Inputs, Tensor]:
        self._forget_calls()  # of a backward pass that computes activations again (torch.utils.checkpoint)
        if self._compiles:
            # The compiler compiles the backward pass when it first runs, so both passes are guarded together.
            try:
                with torch.compiler.set_stance("default"):  # ours is compiled, even where the caller's code is not
                    return self._record_compiled(self._compiled_step(inputs, *arguments))
            except Exception as error:  # whatever the compiler raises, the uncompiled step works
                if is_out_of_memory(error):
                    raise
                logger.warning("%s", explained_failure(error))
                self._compiler_works = self._compiles = False
                self._forget_calls()
        return _loss_and_gradient(self._loss, inputs, *arguments)

    def _step_in_halves(
        self, inputs: Inputs, maps: Any, labels: Tensor, rest: Tensor, share: Tensor
    ) -> tuple[Tensor, Inputs, Tensor]:
        """Take the same step in half the memory: first the moments of both halves, then the gradient of each.

        With weights w_i, the share of the samples in half i, the moments of the batch are m = sum(w_i m_i), and the
        gradient of the loss L(m) for half i is w_i L'(m) dm_i: that of a separate batch whose moments are m.
        """
        parts = halves(inputs, maps, labels)
        weights = [count(part) / count(inputs) for part, _, _ in parts]
        with torch.no_grad():
            moments = [self._loss(part, shown, wanted, rest, share)[1] for part, shown, wanted in parts]
        whole = torch.stack([weight * raw for weight, raw in zip(weights, moments, strict=True)]).sum(0)
        rests = [share * (whole - raw) + rest for raw in moments]
        steps = [self._step(*part, other, share) for part, other in zip(parts, rests, strict=True)]
        loss = torch.stack([weight * step[0] for weight, step in zip(weights, steps, strict=True)]).sum()
        gradients = [
            map_inputs(lambda gradient, weight=weight: weight * gradient, step[1])
            for weight, step in zip(weights, steps, strict=True)
        ]
        return loss, joined(gradients), whole

    def use_compiled(self, wanted: bool) -> None:
        """Choose between the compiled and the plain step; if compilation fails, the plain one is used."""
        self._compiles = wanted and self._compiler_works

    @property
    def is_compiled(self) -> bool:
        """Whether a compiled step exists."""
        return self._compiled is not None and self._compiler_works

    def plain_step_seconds(self, inputs: Inputs, labels: Tensor, maps: Any = None) -> float:
        """Return the time of one uncompiled step on such a batch, measured once."""
        if self._step_seconds is None:
            self.use_compiled(wanted=False)
            self.warm_up(inputs, labels, maps)
            began = time.monotonic()
            loss, _, _ = self(inputs, labels, None, maps)
            float(loss)
            self._step_seconds = time.monotonic() - began
        return self._step_seconds

    def warm_up(self, inputs: Inputs, labels: Tensor, maps: Any = None) -> None:
        """Run one step and discard its result, to compile it or select kernels; later calls do nothing."""
        if self._compiles not in self._warm:
            float(self(inputs, labels, None, maps)[0])
            self._warm.add(self._compiles)

    def description(self, inputs: Inputs) -> str:
        """Return everything that the code of the compiled step depends on: structure and shapes, but not weights."""
        environment = (torch.__version__, device_of_inputs(inputs).type, torch.get_num_threads())
        return f"{environment} {_shape_text(inputs)} {self.options} {self.model}"

    def _record_compiled(self, step: tuple[Tensor, Inputs, Tensor]) -> tuple[Tensor, Inputs, Tensor]:
        """Record once per shape that its step has been compiled; return the step's results."""
        shape = _shape_text(step[1])
        if shape not in self._compiled_shapes:
            self._compiled_shapes.add(shape)
            remember_compiled(self.description(step[1]))
        return step

    def _forget_calls(self) -> None:
        if self.matches:
            self.hooks.forget()

    def _compiled_step(self, inputs: Inputs, *arguments: Any) -> tuple[Tensor, Inputs, Tensor]:
        on_gpu = device_of_inputs(inputs).type == "cuda"
        if self._compiled is None:
            mode = "reduce-overhead" if on_gpu else None  # one recorded launch instead of hundreds
            self._compiled = torch.compile(self._loss, dynamic=False, mode=mode)
        if not on_gpu:
            return _loss_and_gradient(self._compiled, inputs, *arguments)
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        loss, gradient, moments = _loss_and_gradient(self._compiled, inputs, *arguments)
        # Copies, since the next replay overwrites these results.
        return loss.clone(), map_inputs(torch.clone, gradient), moments.clone()

    def evaluate_once(self, inputs: Inputs, labels: Tensor, maps: Any = None) -> Tensor:
        """Return the loss of one batch without compiling anything."""
        maps = self._no_maps if maps is None else maps
        loss, _ = self._loss(inputs, maps, labels, self.empty_pool(), torch.ones((), device=device_of_inputs(inputs)))
        return loss

    def unseen_inputs(self) -> tuple[str, ...]:
        """Return the names of the inputs that no BatchNorm layer depends on; all if no statistics are matched."""
        names = tuple(self.spec.named)
        if not self.matches:
            return names
        inputs = map_inputs(lambda tensor: tensor.requires_grad_(), blank_inputs(self.spec, 2, self.device))
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.half):
            self.spec.run(self.model, _laid_out(inputs, self.layout))
        observed = self.hooks.collect()
        gradients = torch.autograd.grad(observed.mean.sum() + observed.var.sum(), leaves(inputs), allow_unused=True)
        return tuple(name for name, gradient in zip(names, gradients, strict=True) if gradient is None)

    def empty_pool(self) -> Tensor:
        """Return the raw moments of no samples, shape `(2, channels)`."""
        return torch.zeros(2, len(self.stored.mean) if self.matches else 0, device=self.device)

    def rest_of(self, pools: list[Tensor], index: int) -> tuple[Tensor, float] | None:
        """Return the mean raw moments of the other batches seen so far, and the share of batch `index`."""
        others = [pool for i, pool in enumerate(pools) if i != index and bool(pool[1].any())]
        if not others:
            return None
        return torch.stack(others).mean(0), 1 / (len(others) + 1)

    def _loss(self, inputs: Inputs, maps: Any, labels: Tensor, rest: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of a batch and its raw moments; `share` times these plus `rest` is matched."""
        options = self.options
        inputs = map_inputs(apply_maps, inputs, maps, self.fill)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.half):
            returned = self.spec.run(self.model, _laid_out(inputs, self.layout))
        loss, pool = torch.zeros((), device=self.device), rest
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
                loss = loss + weight * sum(prior(tensor) for tensor in leaves(inputs))
        return loss, pool

    def _divergence(self, moments: Moments, rest: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        stored = self.stored
        # Raw moments are taken about the stored mean, so that they pool by averaging without loss of accuracy.
        offset = moments.mean - stored.mean
        raw = torch.stack([offset, moments.var + offset.square()])
        pooled = share * raw + rest
        mean, var = stored.mean + pooled[0], (pooled[1] - pooled[0].square()).clamp_min(0)
        distance = stored.divergence(mean, var, self.options.divergence)
        return self.options.batch_norm_weight * (stored.weight * distance).sum(), raw


def _loss_and_gradient(
    function: Callable[..., tuple[Tensor, Tensor]], inputs: Inputs, *arguments: Any
) -> tuple[Tensor, Inputs, Tensor]:
    """Return the function's loss, the gradient of the inputs, and the function's second value.

    The gradient of one of several inputs is zero if the loss does not depend on it.
    """
    fresh = map_inputs(lambda tensor: tensor.detach().requires_grad_(), inputs)
    variables = leaves(fresh)
    loss, pool = function(fresh, *arguments)
    several = len(variables) > 1
    gradients = torch.autograd.grad(loss, variables, allow_unused=several, materialize_grads=several)
    return loss.detach(), like(inputs, gradients), pool.detach()


def _shape_text(inputs: Inputs) -> str:
    return str(map_inputs(lambda tensor: tuple(tensor.shape), inputs))


def _laid_out(inputs: Inputs, layout: torch.memory_format) -> Inputs:
    """Return copies of the inputs, which the network may overwrite; a layout of images holds for images only."""

    def copied(tensor: Tensor) -> Tensor:
        image = tensor.ndim == _IMAGE + 1
        return tensor.clone(memory_format=layout if image else torch.contiguous_format)

    return map_inputs(copied, inputs)


def _working_copy(model: nn.Module, spec: Specification, half: bool) -> tuple[nn.Module, bool, torch.memory_format]:
    """Return the fastest copy of a network that runs, whether it is in bfloat16, and the layout of its inputs.

    `view` fails in channels-last layout, some forward passes require one type or torch's own layers throughout.

    Raises:
        Exception: whatever the network raises if even the plain copy does not run.
    """
    has_images = any(len(one.shape) == _IMAGE for one in spec.named.values())
    images = has_images and any(isinstance(module, nn.Conv2d) for module in model.modules())
    layouts = (torch.channels_last, torch.contiguous_format) if images else (torch.contiguous_format,)
    for layout in layouts:
        fast = _cast(native_pooling(freeze_norms(private_copy(model))), half, layout)
        if _runs(fast, spec, half, layout):
            return fast, half, layout
    return private_copy(model), False, torch.contiguous_format


def _cast(model: nn.Module, half: bool, layout: torch.memory_format) -> nn.Module:
    """Convert a copy to a layout and, for bfloat16, convert its convolution and linear layers to that type."""
    model = model.to(memory_format=layout)
    if half:
        for module in model.modules():
            if isinstance(module, (*_CONVOLUTIONS, nn.Linear)):
                module.to(torch.bfloat16)
    return model


def _runs(model: nn.Module, spec: Specification, half: bool, layout: torch.memory_format) -> bool:
    device = device_of(model)
    sample = map_inputs(lambda tensor: tensor.requires_grad_(), blank_inputs(spec, _TRIAL_SAMPLES, device))
    try:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
            spec.run(model, _laid_out(sample, layout))
    except Exception as error:  # noqa: BLE001  whatever the network raises, the plain copy works
        logger.debug("The fast copy of %s does not run: %s", type(model).__name__, first_line(error))
        return False
    return True
