"""Learns the roundings and scales of one block."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

from dfq_plugins.reconstruction.fake_quantize import best_scale, fake_quantize, mixed
from dfq_plugins.reconstruction.rounding import LearnedWeight

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor

    from dfq_plugins.reconstruction.blocks import Block
    from dfq_plugins.reconstruction.graph import GraphRunner
    from dfq_plugins.reconstruction.options import ReconstructionOptions
    from dfq_plugins.types import QuantizedLayer, QuantizerHandle

EXPONENTS = (20.0, 2.0)
"""First and last exponent of the penalty: at first it only acts on roundings that are nearly decided."""

_TIMED_STEPS = 5
_SMALLEST = 1e-12


@dataclass(frozen=True)
class BlockData:
    """The stored values of all samples that a block reads and computes, `(samples, ...)` each, by name.

    Args:
        quantized: the block's inputs in the quantized network.
        exact: the block's inputs in the float network.
        targets: the block's outputs in the float network.
    """

    quantized: Mapping[str, Tensor]
    exact: Mapping[str, Tensor]
    targets: Mapping[str, Tensor]


@dataclass
class Learned:
    """What was learned already: a shared weight or scale is learned in the first block that uses it."""

    weights: set[int] = field(default_factory=set)
    scales: set[int] = field(default_factory=set)


class BlockLearner:
    """The parameters of a block in training, in place of its quantizers.

    Args:
        block: the block of the calibrated network.
        weights: the float weights by the name of the layer.
        options: settings.
        learned: what earlier blocks learned; what this block learns is added.
    """

    def __init__(
        self, block: Block, weights: Mapping[str, Tensor], options: ReconstructionOptions, learned: Learned
    ) -> None:
        self.options = options
        self.weights: list[tuple[QuantizedLayer, QuantizerHandle, LearnedWeight]] = []
        self.scales: dict[int, tuple[QuantizerHandle, Tensor, nn.Parameter]] = {}
        every = [handle for layer in block.layers for handle in layer.activations]
        self.activations = list(dict.fromkeys(every))  # modules may share a quantizer
        for layer in block.layers:
            if layer.weight is not None and id(layer.module.weight) not in learned.weights:
                learned.weights.add(id(layer.module.weight))
                self.weights.append((layer, layer.weight, self._weight(layer.weight, weights[layer.name])))
        for handle in self.activations:
            if options.learned_scales and not handle.fixed and handle.key not in learned.scales:
                scale = handle.scale()
                self.scales[handle.key] = (handle, scale, nn.Parameter(torch.zeros_like(scale)))
        learned.scales |= {handle.key for handle in self.activations}

    def _weight(self, handle: QuantizerHandle, weight: Tensor) -> LearnedWeight:
        scale = handle.scale()
        if self.options.learned_scales and not handle.fixed:
            scale = best_scale(weight, scale, handle.lowest, handle.highest)
        learned = LearnedWeight(weight, scale, handle, learned_rounding=self.options.learned_rounding)
        learned.log_ratio.requires_grad_(self.options.learned_scales and not handle.fixed)
        return learned

    @contextmanager
    def inserted(self, rng: torch.Generator) -> Iterator[None]:
        """Within the block, let the learned weights and scales quantize, with random dropping."""
        with ExitStack() as stack:
            for _, handle, learned in self.weights:
                stack.enter_context(handle.replaced(lambda _, learned=learned: (learned(), learned.scale)))  # type: ignore[misc]
            for handle in self.activations:
                stack.enter_context(handle.replaced(self._dropping(handle, rng)))
            yield

    def _dropping(self, handle: QuantizerHandle, rng: torch.Generator) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        known = handle.scale()
        trained = self.scales.get(handle.key)

        def quantize(values: Tensor) -> tuple[Tensor, Tensor]:
            scale = known if trained is None else trained[1] * trained[2].exp()
            quantized = fake_quantize(values, scale, handle.lowest, handle.highest)
            return mixed(quantized, values, self.options.drop, rng), scale

        return quantize

    def groups(self, steps: int) -> list[dict[str, object]]:
        """Return the parameter groups of the optimizer, each with its rate; the first is the roundings'."""
        rounding, weights, activations = self.options.rates(steps)
        of_weights = [learned.log_ratio for _, _, learned in self.weights if learned.log_ratio.requires_grad]
        return [
            {"params": [one for _, _, learned in self.weights for one in learned.roundings()], "lr": rounding},
            {"params": of_weights, "lr": weights},
            {"params": [parameter for _, _, parameter in self.scales.values()], "lr": activations},
        ]

    def penalty(self, progress: float) -> Tensor:
        """Return the mean penalty of all roundings at a progress of 0 to 1; zero in the warm-up."""
        warm_up = self.options.warm_up
        count = sum(one.numel() for _, _, learned in self.weights for one in learned.roundings())
        if progress < warm_up or not count:
            return torch.zeros(())
        first, last = EXPONENTS
        exponent = first + (last - first) * (progress - warm_up) / (1 - warm_up)
        return torch.stack([learned.penalty(exponent) for _, _, learned in self.weights]).sum() / count

    @torch.no_grad()
    def store(self) -> None:
        """Write what was learned into the framework's weights and quantizers."""
        for layer, handle, learned in self.weights:
            if not handle.fixed:
                handle.set_scale(learned.scale.detach())
            layer.module.weight.copy_(learned.integers() * handle.scale())  # type: ignore[operator]
        for handle, scale, parameter in self.scales.values():
            handle.set_scale(scale * parameter.exp())


def learn_block(
    runner: GraphRunner,
    block: Block,
    learner: BlockLearner,
    data: BlockData,
    seconds: float | None = None,
    report: Callable[[float], None] = lambda _: None,
) -> int:
    """Learn a block's roundings and scales, store them, and return the number of steps.

    The loss is the squared error of the outputs as a share of their variance, plus the penalty of undecided roundings.

    Args:
        runner: runs the calibrated network.
        block: its block.
        learner: the block's parameters.
        data: what the block reads, and what it should compute.
        seconds: maximum time; the schedule is compressed to fit. None: no limit.
        report: called with the share of the steps that is done.
    """
    options = learner.options
    rng = torch.Generator().manual_seed(options.seed)
    variances = {
        name: float(target.var(0, correction=0).sum().clamp(min=_SMALLEST)) for name, target in data.targets.items()
    }
    groups = [group for group in learner.groups(options.steps) if group["params"]]
    if not groups or not data.targets:
        return 0
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.999))
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    count, strength, began = len(next(iter(data.targets.values()))), 0.0, time.monotonic()
    steps, step = options.steps, 0
    with learner.inserted(rng):
        while step < steps:
            chosen = torch.randint(count, (min(options.batch_size, count),), generator=rng)
            given = {
                name: mixed(values[chosen], data.exact[name][chosen], options.drop, rng)
                for name, values in data.quantized.items()
            }
            found = runner.run(block.nodes, given)
            error = sum(
                (runner.plain(found[name]) - target[chosen]).square().sum() / (len(chosen) * variances[name])
                for name, target in data.targets.items()
            )
            if step == 0:
                strength = options.regularization * float(error.detach())
            _set_rates(optimizer, rates, options, step / steps)
            optimizer.zero_grad()
            (error + strength * learner.penalty(step / steps)).backward()
            optimizer.step()
            step += 1
            if seconds is not None and step == _TIMED_STEPS:
                steps = max(step, min(steps, int(seconds * step / (time.monotonic() - began))))
                rates = [rate * options.steps / steps for rate in rates]
            report(step / steps)
    learner.store()
    return step


def _set_rates(
    optimizer: torch.optim.Optimizer, rates: list[float], options: ReconstructionOptions, progress: float
) -> None:
    """Let the rates of the scales fall as half a cosine; that of the roundings stays."""
    first = 1 if options.learned_rounding else 0
    for index, (group, rate) in enumerate(zip(optimizer.param_groups, rates, strict=True)):
        group["lr"] = rate if index < first else rate * (1 + math.cos(math.pi * progress)) / 2
