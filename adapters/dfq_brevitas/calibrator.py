"""The calibrator "brevitas": trace, insert Brevitas's quantizers, calibrate, correct biases."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from dfq_brevitas.bias import correct_biases, is_weight_layer
from dfq_brevitas.coverage import describe_coverage
from dfq_brevitas.export import export_onnx
from dfq_brevitas.finn.form import finn_form
from dfq_brevitas.finn.quantizing import finn_quantized_graph, release_clipping
from dfq_brevitas.finn.recipes import require_finn_recipe
from dfq_brevitas.finn.scales import share_scales
from dfq_brevitas.framework import GraphModule, bias_correction_mode, calibration_mode
from dfq_brevitas.graph import float_graph, quantized_graph
from dfq_brevitas.input_range import exchange_input_quantizers, fix_input_range
from dfq_brevitas.options import BrevitasOptions
from dfq_brevitas.quantizers import FLOAT_BITS, LAYERS, quantizer_maps
from dfq_brevitas.quiet import framework_notices_silenced
from dfq_brevitas.training import learned_scales, take_gradients
from dfq_brevitas.weights import apply_gptq, learn_rounding
from dfq_plugins.calibration_data import check_batch
from dfq_plugins.errors import ModelError, UsageError
from dfq_plugins.model_state import frozen_copy

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from torch import nn

    from dfq_brevitas.options import Target
    from dfq_plugins.types import Artifact, Coverage, InputSpec, Recipe

WEIGHT_BITS = range(1, 9)
ACTIVATION_BITS = range(2, 9)
_RUN_KEY = "dfq_brevitas"
_KEPT_SAMPLES = 4  # qonnx runs node by node, about a second a sample


@dataclass(frozen=True)
class _Run:
    """What `prepare` was told, kept in the graph module's `meta` for the later steps.

    `samples` are the first calibration inputs, on which exports are compared; None before calibration.
    """

    spec: InputSpec
    recipe: Recipe
    training: bool = False
    samples: torch.Tensor | None = None
    target: Target = "generic"


class BrevitasCalibrator:
    """Calibrates a model with Brevitas's graph mode PTQ; the result is a graph of `brevitas.nn` layers.

    Quantized are the weights and the inputs of every linear and convolution layer, the first and the last included, the
    outputs of activations, and both inputs of every addition, which share one scale as FINN needs it. The network's
    input and those of additions have a width of their own, 8 bits by default. The network's output keeps the
    accumulator's precision. With activations of 32 bits only weights are quantized. Beside binary weights the first and
    the last layer stay in float.

    With the option `target="finn"` the network is rewritten in FINN's operators, each producer has one quantizer, and
    the QONNX file is checked by FINN's rules.
    """

    def __init__(self, options: BrevitasOptions | None = None) -> None:
        self.options = options or BrevitasOptions()

    def prepare(self, model: nn.Module, spec: InputSpec, recipe: Recipe, *, training: bool = False) -> GraphModule:
        """Return a copy of `model`, traced, with BatchNorm folded and Brevitas's quantizers inserted.

        For training, weights, biases and the scales of all quantizers take gradients once it is calibrated, but for the
        scale of a network input whose range is known.

        Raises:
            UsageError: the recipe is not supported.
            ModelError: the model cannot be traced, or holds nothing to quantize.
        """
        _require_supported(recipe, self.options)
        private = frozen_copy(model).float()
        with framework_notices_silenced():
            merge = self.options.merges_batch_norm(recipe.weight_bits, training=training)
            traced = float_graph(private, self.options, merge_batch_norm=merge)
            if self.options.target == "finn":
                graph = finn_quantized_graph(finn_form(traced, spec), recipe, self.options, training=training)
            else:
                graph = quantized_graph(traced, recipe, self.options, training=training)
            _require_quantized(graph, model, keeps_ends=self.options.keeps_ends(recipe.weight_bits))
            if recipe.activation_bits != FLOAT_BITS:
                self._settle_input(graph, spec, recipe)
        graph.meta[_RUN_KEY] = _Run(spec, recipe, training, target=self.options.target)
        return graph.eval()

    def _settle_input(self, graph: GraphModule, spec: InputSpec, recipe: Recipe) -> None:
        """Give the input's quantizer the width that was asked for, and no sign where none is needed."""
        extremes = spec.extremes if self.options.known_input_range else None
        # FINN's thresholds for a quantizer without a ReLU are signed.
        unsigned = extremes is not None and extremes[0] >= 0 and self.options.target != "finn"
        bits = self.options.input_bits
        if unsigned or bits != recipe.activation_bits:
            identities = quantizer_maps(replace(recipe, activation_bits=bits), self.options).identities
            exchange_input_quantizers(graph, identities["unsigned" if unsigned else "signed"])

    def calibrate(self, prepared: nn.Module, batches: Iterable[torch.Tensor]) -> None:
        """Let Brevitas record the ranges, then mend weights and biases as the options say, in place.

        The later steps read the data again. A list or a data loader is iterated as often; a generator, which can be
        iterated only once, is kept in memory.

        Args:
            prepared: what `prepare` returned.
            batches: inputs `(samples, *shape)`.

        Raises:
            UsageError: there is no batch, or one has the wrong shape.
            DataError: a batch holds NaN or infinity.
        """
        run, graph = _run_of(prepared)
        data = _Batches(batches, run.spec, next(graph.parameters()).device)
        with torch.no_grad(), framework_notices_silenced():
            with calibration_mode(graph):
                count = sum(1 for inputs in data if graph(inputs) is not None)
            graph.eval()
            if run.target == "finn":
                share_scales(graph)
            if count == 0:
                raise UsageError(
                    "Calibration needs at least one batch, got none. Give inputs of shape (samples, *shape)."
                )
            if run.spec.extremes is not None and self.options.known_input_range:
                fix_input_range(graph, run.spec.extremes)
            self._refine(graph, data)
        if run.target == "finn":
            release_clipping(graph)
        if run.training:
            known = run.spec.extremes is not None and self.options.known_input_range
            take_gradients(graph, input_range_known=known)
        graph.meta[_RUN_KEY] = replace(run, samples=next(iter(data))[:_KEPT_SAMPLES].cpu())

    def _refine(self, graph: GraphModule, data: _Batches) -> None:
        # The first run with quantization on computes the weights' scales, which stay from then on.
        graph(next(iter(data))[:1])
        if self.options.gptq:
            apply_gptq(graph, data)
        if self.options.learned_round:
            learn_rounding(graph, data, self.options.learned_round_steps)
        if self.options.bias_correction == "network":
            layers = sum(map(is_weight_layer, graph.modules()))
            correct_biases(graph, data, self.options.correction_strength_for(layers))
        elif self.options.bias_correction == "layer":
            with bias_correction_mode(graph):
                for inputs in data:
                    graph(inputs)
        graph.eval()

    def convert(self, prepared: nn.Module) -> GraphModule:
        """Return a copy in eval mode with quantization enabled: Brevitas's native model.

        Raises:
            UsageError: the model was not calibrated.
        """
        run, graph = _run_of(prepared)
        if run.samples is None:
            raise UsageError("Quantizers must see data before conversion. Call calibrate() first.")
        converted: GraphModule = copy.deepcopy(graph)
        return converted.eval().requires_grad_(requires_grad=False)

    def scale_parameters(self, prepared: nn.Module) -> tuple[nn.Parameter, ...]:
        """Return the scales of weights and activations that the training learns."""
        return learned_scales(_run_of(prepared)[1])

    def describe(self, converted: nn.Module) -> Coverage:
        """List layers, activations and additions with the widths that their own quantizers report."""
        run, graph = _run_of(converted)
        with torch.no_grad(), framework_notices_silenced():
            return describe_coverage(graph, run.recipe)

    def export(self, converted: nn.Module, spec: InputSpec, path: Path) -> tuple[Artifact, ...]:
        """Write `model.qonnx.onnx` (for FINN) and `model.qcdq.onnx` (for ONNX Runtime), run and compare both.

        Binary weights have no QCDQ form, so that they come as QONNX alone.

        Raises:
            ArtifactError: a file does not compute what the torch model does; it is removed first.
            DataError: the folder cannot be written.
        """
        run, graph = _run_of(converted)
        if run.samples is None:
            raise UsageError("Only a calibrated model can be exported. Call calibrate() and convert() first.")
        _require_same_shape(spec, run.spec)
        return export_onnx(graph, run.samples, path, with_qcdq=run.recipe.weight_bits > 1, target=run.target)


class _Batches:
    """Checked batches on the model's device that can be iterated several times."""

    def __init__(self, batches: Iterable[torch.Tensor], spec: InputSpec, device: torch.device) -> None:
        once = iter(batches) is batches
        self._batches: Iterable[torch.Tensor] = list(batches) if once else batches
        self._spec, self._device = spec, device

    def __iter__(self) -> Iterator[torch.Tensor]:
        for batch in self._batches:
            yield _checked(batch, self._spec).to(self._device)


def _require_supported(recipe: Recipe, options: BrevitasOptions) -> None:
    if recipe.weight_bits not in WEIGHT_BITS or recipe.activation_bits not in (*ACTIVATION_BITS, FLOAT_BITS):
        raise UsageError(
            f"brevitas takes weights of {WEIGHT_BITS[0]} to {WEIGHT_BITS[-1]} bits and activations of "
            f"{ACTIVATION_BITS[0]} to {ACTIVATION_BITS[-1]} bits or {FLOAT_BITS}, which is float, got {recipe}. Choose "
            "e.g. w8a8, w4a4, or w1a32 for binary weights."
        )
    if options.target == "finn":
        require_finn_recipe(recipe, options)
    if recipe.weight_bits == 1 and (options.gptq or options.learned_round):
        chosen = "gptq" if options.gptq else "learned_round"
        raise UsageError(
            f"{chosen} chooses between neighbouring integers, and binary weights have two values, got {recipe}. Leave "
            f"{chosen} out, and fine-tune instead."
        )


def _require_quantized(graph: GraphModule, model: nn.Module, *, keeps_ends: bool) -> None:
    if any(map(is_weight_layer, graph.modules())):
        return
    if keeps_ends and any(isinstance(module, LAYERS) for module in graph.modules()):
        raise ModelError(
            f"{type(model).__name__} has no layer between its first and its last, and these keep float weights. Set "
            "first_and_last=quantized."
        )
    kinds = sorted({type(module).__name__ for module in model.modules() if not list(module.children())})
    held = ", ".join(kinds) or "nothing"
    raise ModelError(
        f"Brevitas found no layer to quantize in {type(model).__name__} (it holds: {held}). "
        "It quantizes linear, convolution and transposed convolution modules: write layers as such modules."
    )


def _require_same_shape(given: InputSpec, prepared: InputSpec) -> None:
    if given.shape != prepared.shape:
        raise UsageError(
            f"Export needs the input shape that the model was prepared with, {prepared.shape}, got {given.shape}. "
            "Give the same specification."
        )


def _run_of(module: nn.Module) -> tuple[_Run, GraphModule]:
    run = getattr(module, "meta", {}).get(_RUN_KEY)
    if not isinstance(module, GraphModule) or not isinstance(run, _Run):
        raise UsageError(
            f"brevitas works on models that its own prepare() returned, got {type(module).__name__}. Call prepare() "
            "first; for a model from your own brevitas.graph.quantize.quantize, use calibration_mode yourself."
        )
    return run, module


def _checked(batch: torch.Tensor, spec: InputSpec) -> torch.Tensor:
    check_batch(batch, spec)
    return batch.float()
