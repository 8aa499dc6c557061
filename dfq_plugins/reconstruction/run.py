"""The public verb: `reconstruct` learns the roundings and scales of a calibrated network, block by block."""

from __future__ import annotations

import time
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dfq_plugins.errors import DfqWarning
from dfq_plugins.inputs import count, leaves, moved, random_inputs, split
from dfq_plugins.model_state import device_of
from dfq_plugins.reconstruction.blocks import find_blocks
from dfq_plugins.reconstruction.graph import GraphRunner, flat_graph
from dfq_plugins.reconstruction.learning import BlockData, BlockLearner, Learned, learn_block
from dfq_plugins.reconstruction.state import capture, restore
from dfq_plugins.types import ProgressEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor, nn

    from dfq_plugins.reconstruction.blocks import Block
    from dfq_plugins.reconstruction.checkpoints import BlockStates
    from dfq_plugins.reconstruction.options import ReconstructionOptions
    from dfq_plugins.types import Calibrator, Inputs, QuantizedView, Specification

STAGE = "reconstruct"
_BATCH = 64
_BYTES = 4


@dataclass(frozen=True)
class ReconstructedBlock:
    """What was learned in one block.

    Args:
        name: its layers with weights.
        steps: training steps; 0 if it was restored.
        error_before: squared error of its outputs after calibration, as a share of their variance.
        error: the same after its reconstruction, with the blocks before it reconstructed in both cases.
        seconds: time that it took.
        megabytes: size of the stored values that it was learned from.
    """

    name: str
    steps: int
    error_before: float
    error: float
    seconds: float
    megabytes: float


def reconstruct(
    framework: Calibrator,
    prepared: nn.Module,
    reference: nn.Module,
    inputs: Inputs,
    spec: Specification,
    options: ReconstructionOptions,
    *,
    report: Callable[[ProgressEvent], None] = lambda _: None,
    states: BlockStates | None = None,
) -> tuple[ReconstructedBlock, ...]:
    """Learn the roundings and scales of a calibrated network in place, so that each block computes what it should.

    Block after block, the squared difference from the float network's block is minimized over how each weight is
    rounded and over the scales of weights and activations, with a random mixture of float and quantized activations.
    Sources: AdaRound (Nagel et al. 2020), BRECQ (Li et al. 2021), QDrop (Wei et al. 2022), Genie (Jeon et al. 2023).

    Args:
        framework: the calibrator that prepared the network.
        prepared: the calibrated network.
        reference: a copy from before calibration, which computes in float.
        inputs: the samples, `(samples, *shape)`.
        spec: the network's inputs.
        options: settings.
        report: called with progress events; the metrics of a finished block are those of `ReconstructedBlock`.
        states: stores finished blocks, and restores those of an interrupted run.

    Raises:
        UsageError: the framework cannot reconstruct.
        ModelError: the network cannot be traced.
    """
    view, exact_view = framework.quantized_view(prepared), framework.quantized_view(reference)
    device = device_of(prepared)
    _restore_biases(view, exact_view)
    samples = leaves(moved(random_inputs(spec, 3), device))
    with _frozen(prepared), exact_view.floating():
        runner = GraphRunner(flat_graph(prepared, view, spec), view, samples)
        exact_runner = GraphRunner(flat_graph(reference, exact_view, spec), exact_view, samples)
        blocks = find_blocks(runner, view.layers)
        exact: dict[str, Any] = {layer.name: layer.module for layer in exact_view.layers}
        weights = {layer.name: exact[layer.name].weight.detach() for layer in view.layers if layer.weight is not None}
        _warn_of_unlearned(blocks)
        wanted = min(options.samples, count(inputs))
        kept = _samples_that_fit(wanted, blocks, runner, options.max_megabytes)
        run = _Run(runner, exact_runner, weights, options, report, states, blocks)
        given = dict(zip(runner.placeholders, leaves(moved(inputs, device)), strict=True))
        given = {name: values[:kept] for name, values in given.items()}
        return tuple(run.blocks(given))


class _Run:
    def __init__(
        self,
        runner: GraphRunner,
        exact_runner: GraphRunner,
        weights: Mapping[str, Any],
        options: ReconstructionOptions,
        report: Callable[[ProgressEvent], None],
        states: BlockStates | None,
        blocks: tuple[Block, ...],
    ) -> None:
        self.runner, self.exact_runner, self.weights = runner, exact_runner, weights
        self.options, self.report, self.states, self.found = options, report, states, blocks
        self.learned = Learned()
        self.began = time.monotonic()

    def blocks(self, inputs: dict[str, Tensor]) -> Iterator[ReconstructedBlock]:
        """Learn the blocks in order, and yield what became of each."""
        quantized, exact = dict(inputs), dict(inputs)
        for index, block in enumerate(self.found):
            began = time.monotonic()
            self._report(index, fraction=0.0)
            exact |= _computed(self.exact_runner, block, exact)
            targets = {name: exact[name] for name in block.outputs}
            before = _error(_computed(self.runner, block, quantized), targets)
            given = {name: quantized[name] for name in block.inputs}
            data = BlockData(given, {name: exact[name] for name in block.inputs}, targets)
            steps = self._restored_or_learned(index, block, data, before)
            quantized |= _computed(self.runner, block, quantized)
            error = _error(quantized, targets)
            size = sum(one.nbytes for values in (quantized, exact) for one in values.values()) / 2**20
            done = ReconstructedBlock(block.name, steps, before, error, time.monotonic() - began, size)
            self._report(index + 1, done)
            quantized, exact = ({name: values[name] for name in block.live} for values in (quantized, exact))
            yield done

    def _restored_or_learned(self, index: int, block: Block, data: BlockData, before: float) -> int:
        """Restore the block, or learn it and store it; return the steps."""
        learner = BlockLearner(block, self.weights, self.options, self.learned)
        if self.states is not None and self.states.restore(index, block):
            return 0
        steps = self._learn(index, block, learner, data, before)
        state = capture(block)
        restore(block, state)  # as a resumed run does: a range may differ from its scale's by a rounding
        if self.states is not None:
            self.states.store(index, block, state)
        return steps

    def _learn(self, index: int, block: Block, learner: BlockLearner, data: BlockData, before: float) -> int:
        """Learn the block; keep it as it was calibrated where that is better, as after far too few steps."""
        budget, calibrated = self.options.max_seconds, capture(block)
        left = None if budget is None else max(0.0, budget - (time.monotonic() - self.began))
        share = None if left is None else left / (len(self.found) - index)
        steps = learn_block(self.runner, block, learner, data, share, lambda part: self._report(index, fraction=part))
        if not _error(_computed(self.runner, block, data.quantized), data.targets) <= before:
            restore(block, calibrated)
        return steps

    def _report(self, done: int, block: ReconstructedBlock | None = None, fraction: float | None = None) -> None:
        total = len(self.found)
        metrics = (
            {}
            if block is None
            else {
                "error_before": block.error_before,
                "error": block.error,
                "seconds": block.seconds,
                "megabytes": block.megabytes,
            }
        )
        position = None if fraction is None else (done + fraction) / total
        self.report(ProgressEvent(STAGE, done, total, metrics, position))


def _samples_that_fit(wanted: int, blocks: tuple[Block, ...], runner: GraphRunner, megabytes: float) -> int:
    """Return how many samples can be stored: each value that a block reads or computes, of either network."""
    widest = max((sum(map(runner.values_in, {*block.inputs, *block.live})) for block in blocks), default=1)
    fitting = max(1, int(megabytes * 2**20 / (2 * _BYTES * widest)))
    if fitting < wanted:
        warnings.warn(
            f"The reconstruction learns from {fitting} of the {wanted} samples: the values between blocks take up to "
            f"{2 * _BYTES * widest / 2**20:.3g} MiB a sample, and max_megabytes is {megabytes:g}. Give more for "
            "better results.",
            DfqWarning,
            stacklevel=3,
        )
    return min(wanted, fitting)


def _warn_of_unlearned(blocks: tuple[Block, ...]) -> None:
    """Warn of blocks that compute nothing that can be compared sample by sample."""
    if names := [block.name for block in blocks if not block.outputs]:
        warnings.warn(
            f"The layers {', '.join(names)} stay as they were calibrated: what follows them is not a floating-point "
            "tensor whose first axis is the batch, so samples cannot be compared with the float network's.",
            DfqWarning,
            stacklevel=3,
        )


@torch.no_grad()
def _computed(runner: GraphRunner, block: Block, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the block's outputs for all samples, as the framework's quantizers compute them."""
    given = {name: values[name] for name in block.inputs}
    parts: list[dict[str, Tensor]] = []
    for batch in split(given, _BATCH):
        found = runner.run(block.nodes, batch)
        parts.append({name: runner.plain(found[name]) for name in block.outputs})
    return {name: torch.cat([part[name] for part in parts]) for name in block.outputs}


@torch.no_grad()
def _error(found: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> float:
    """Return the squared error as a share of the variance over the samples, averaged over the outputs."""
    errors = [
        float((found[name] - target).square().mean() / target.var(0, correction=0).mean().clamp(min=1e-12))
        for name, target in targets.items()
    ]
    return sum(errors) / len(errors) if errors else float("nan")


@torch.no_grad()
def _restore_biases(view: QuantizedView, exact_view: QuantizedView) -> None:
    """Undo corrections of the biases, which fit the roundings and scales of the calibrated network."""
    exact: dict[str, Any] = {layer.name: layer.module for layer in exact_view.layers}
    for layer in view.layers:
        bias = getattr(layer.module, "bias", None)
        if layer.weight is not None and bias is not None:
            former = exact[layer.name].bias
            bias.copy_(torch.zeros_like(bias) if former is None else former)


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Within the block, no parameter of the network requires gradients."""
    former = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    try:
        for parameter, _ in former:
            parameter.requires_grad = False
        yield
    finally:
        for parameter, required in former:
            parameter.requires_grad = required
