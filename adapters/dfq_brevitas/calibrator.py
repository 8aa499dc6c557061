"""The calibrator "brevitas": trace, insert Brevitas's quantizers, calibrate, correct biases."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import torch

from dfq_brevitas.bias import correct_biases, is_weight_layer
from dfq_brevitas.coverage import describe_coverage
from dfq_brevitas.export import export_onnx, load_exported
from dfq_brevitas.finn.form import finn_form
from dfq_brevitas.finn.quantizing import finn_quantized_graph, release_clipping
from dfq_brevitas.finn.recipes import require_finn_recipe
from dfq_brevitas.finn.scales import share_scales
from dfq_brevitas.framework import GraphModule, bias_correction_mode, calibration_mode
from dfq_brevitas.graph import float_graph, quantized_graph
from dfq_brevitas.input_range import fix_input_range, replace_input_quantizers
from dfq_brevitas.notices import NOTICES
from dfq_brevitas.options import BrevitasOptions
from dfq_brevitas.quantizers import FLOAT_BITS, LAYERS, quantizer_maps
from dfq_brevitas.shared_ranges import covering_every_call
from dfq_brevitas.training import learned_scales, take_gradients
from dfq_brevitas.way_round import way_round
from dfq_brevitas.weights import apply_gptq, learn_rounding
from dfq_plugins.errors import ModelError, UsageError
from dfq_plugins.model_state import device_of
from dfq_plugins.network.fit import fitted_copy
from dfq_plugins.network.tracing.trace import example_inputs, trace
from dfq_plugins.quantization.batches import checked_batches
from dfq_plugins.quantization.notices import silenced
from dfq_plugins.quantization.prepared import attach_state, require_prepared_shape, state_of
from dfq_plugins.quantization.step_errors import step_errors
from dfq_plugins.types import Calibrator

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from torch import nn

    from dfq_brevitas.options import Target
    from dfq_plugins.types import Artifact, Coverage, InputSpec, Recipe

WEIGHT_BITS = range(1, 9)
ACTIVATION_BITS = range(2, 9)
_KEPT_SAMPLES = 16
"""Calibration inputs kept for comparing exported files: they give millions of integers in any image network."""


@dataclass(frozen=True)
class _Run:
    """The settings of `prepare`, stored with the graph module for the later steps.

    `samples` are the first calibration inputs, used to compare exports; None before calibration.
    """

    spec: InputSpec
    recipe: Recipe
    training: bool = False
    samples: torch.Tensor | None = None
    target: Target = "generic"


class BrevitasCalibrator(Calibrator):
    """Calibrates a model with Brevitas's graph mode PTQ; the result is a graph of `brevitas.nn` layers.

    It quantizes the weights and inputs of every linear and convolution layer, including the first and the last, the
    outputs of activations, and both inputs of every addition, which share one scale as FINN requires. The network's
    input and the inputs of additions have separate bit widths, 8 by default. The network's output keeps the
    accumulator's precision. With 32-bit activations, only weights are quantized. With binary weights, the first and the
    last layer stay in float.

    With the option `target="finn"`, the network is rewritten with FINN's operators, each producer has one quantizer,
    and the QONNX file is checked against FINN's rules.
    """

    def __init__(self, options: BrevitasOptions | None = None) -> None:
        self.options = options or BrevitasOptions()

    def prepare(self, model: nn.Module, spec: InputSpec, recipe: Recipe, *, training: bool = False) -> GraphModule:
        """Return a traced copy of `model` with BatchNorm folded and Brevitas's quantizers inserted.

        For training, weights, biases and the scales of all quantizers become trainable after calibration, except for
        the scale of a network input whose range is known.

        Raises:
            UsageError: the recipe is not supported.
            ModelError: the model cannot be traced, or contains nothing to quantize.
        """
        _require_supported(recipe, self.options)
        private = trace(fitted_copy(model), spec, way_round=way_round)
        with silenced(NOTICES):
            merge = self.options.merges_batch_norm(recipe.weight_bits, training=training)
            traced = float_graph(private, self.options, merge_batch_norm=merge)
            if self.options.target == "finn":
                graph = finn_quantized_graph(finn_form(traced, spec), recipe, self.options, training=training)
            else:
                sample = next(iter(example_inputs(spec, 2, private).values()))
                graph = quantized_graph(traced, recipe, self.options, sample=sample, training=training)
            _require_quantized(graph, model, keeps_ends=self.options.keeps_ends(recipe.weight_bits))
            if recipe.activation_bits != FLOAT_BITS:
                self._configure_input(graph, spec, recipe)
        attach_state(graph, _Run(spec, recipe, training, target=self.options.target))
        return graph.eval()

    def _configure_input(self, graph: GraphModule, spec: InputSpec, recipe: Recipe) -> None:
        """Set the input quantizer to the requested width, and make it unsigned if it needs no sign."""
        input_range = spec.input_range if self.options.known_input_range else None
        # In FINN, the thresholds of a quantizer without a ReLU are signed.
        unsigned = input_range is not None and input_range[0] >= 0 and self.options.target != "finn"
        bits = self.options.input_bits
        if unsigned or bits != recipe.activation_bits:
            identities = quantizer_maps(replace(recipe, activation_bits=bits), self.options).identities
            replace_input_quantizers(graph, identities["unsigned" if unsigned else "signed"])

    def calibrate(self, prepared: nn.Module, batches: Iterable[torch.Tensor]) -> None:
        """Let Brevitas record the ranges, then correct weights and biases as the options say, in place.

        The later steps read the data again. A list or a data loader is iterated several times; the batches of a
        generator, which can be iterated only once, are kept in memory.

        Args:
            prepared: the module returned by `prepare`.
            batches: inputs `(samples, *shape)`.

        Raises:
            UsageError: the module does not come from `prepare()`.
            DataError: there is no batch, or one has the wrong shape or holds NaN or infinity.
        """
        run, graph = _run_of(prepared)
        data = _Batches(batches, run.spec, device_of(graph))
        with torch.no_grad(), silenced(NOTICES), step_errors("Brevitas", "calibrate", graph, way_round):
            with calibration_mode(graph), covering_every_call(graph):
                for inputs in data:
                    graph(inputs)
            graph.eval()
            if run.target == "finn":
                share_scales(graph)
            if run.spec.input_range is not None and self.options.known_input_range:
                fix_input_range(graph, run.spec.input_range)
            self._refine(graph, data)
        if run.target == "finn":
            release_clipping(graph)
        if run.training:
            known = run.spec.input_range is not None and self.options.known_input_range
            take_gradients(graph, input_range_known=known)
        attach_state(graph, replace(run, samples=next(iter(data))[:_KEPT_SAMPLES].cpu()))

    def _refine(self, graph: GraphModule, data: _Batches) -> None:
        # The first run with quantization enabled computes the weight scales, which are fixed from then on.
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
        """Return the scales of weights and activations that are trained."""
        return learned_scales(_run_of(prepared)[1])

    def describe(self, converted: nn.Module) -> Coverage:
        """List layers, activations and additions with the bit widths that their quantizers report."""
        run, graph = _run_of(converted)
        with torch.no_grad(), silenced(NOTICES):
            return describe_coverage(graph, run.recipe)

    def export(self, converted: nn.Module, spec: InputSpec, path: Path) -> tuple[Artifact, ...]:
        """Write `model.qonnx.onnx` (for FINN) and `model.qcdq.onnx` (for ONNX Runtime), run and compare both.

        QCDQ cannot represent binary weights, so they are exported as QONNX only.

        Raises:
            ArtifactError: a file does not compute what the torch model does; it is kept as `<name>.rejected`.
            DataError: the folder cannot be written.
        """
        run, graph = _run_of(converted)
        if run.samples is None:
            raise UsageError("Only a calibrated model can be exported. Call calibrate() and convert() first.")
        require_prepared_shape(spec, run.spec)
        classifies, with_qcdq = spec.num_classes is not None, run.recipe.weight_bits > 1
        return export_onnx(graph, run.samples, path, classifies=classifies, with_qcdq=with_qcdq, target=run.target)

    def load(self, path: Path) -> nn.Module:
        """Return a module that runs either file in ONNX Runtime, in exact arithmetic.

        Raises:
            DataError: the file is damaged.
        """
        return load_exported(path)


class _Batches:
    """Checked batches on the model's device that can be iterated several times."""

    def __init__(self, batches: Iterable[torch.Tensor], spec: InputSpec, device: torch.device) -> None:
        once = iter(batches) is batches
        self._batches: Iterable[torch.Tensor] = list(batches) if once else batches
        self._spec, self._device = spec, device

    def __iter__(self) -> Iterator[torch.Tensor]:
        return checked_batches(self._batches, self._spec, self._device)


def _require_supported(recipe: Recipe, options: BrevitasOptions) -> None:
    if recipe.weight_bits not in WEIGHT_BITS or recipe.activation_bits not in (*ACTIVATION_BITS, FLOAT_BITS):
        raise UsageError(
            f"brevitas takes weights of {WEIGHT_BITS[0]} to {WEIGHT_BITS[-1]} bits and activations of "
            f"{ACTIVATION_BITS[0]} to {ACTIVATION_BITS[-1]} bits or {FLOAT_BITS} (float), got {recipe}. Choose e.g. "
            "w8a8, w4a4, or w1a32 for binary weights."
        )
    if options.target == "finn":
        require_finn_recipe(recipe, options)
    if recipe.weight_bits == 1 and (options.gptq or options.learned_round):
        chosen = "gptq" if options.gptq else "learned_round"
        raise UsageError(
            f"{chosen} chooses between neighboring integers, but binary weights have only two values, got {recipe}. "
            f"Leave {chosen} out, and fine-tune instead."
        )


def _require_quantized(graph: GraphModule, model: nn.Module, *, keeps_ends: bool) -> None:
    if any(map(is_weight_layer, graph.modules())):
        return
    if keeps_ends and any(isinstance(module, LAYERS) for module in graph.modules()):
        raise ModelError(
            f"{type(model).__name__} has no layer between its first and its last, and these two keep float weights. "
            "Set first_and_last=quantized."
        )
    kinds = sorted({type(module).__name__ for module in model.modules() if not list(module.children())})
    held = ", ".join(kinds) or "no modules"
    raise ModelError(
        f"Brevitas found no layer to quantize in {type(model).__name__} (it contains: {held}). "
        "It quantizes linear, convolution and transposed convolution modules: use these modules for the layers."
    )


def _run_of(module: nn.Module) -> tuple[_Run, GraphModule]:
    otherwise = "if you called brevitas.graph.quantize.quantize yourself, calibrate with calibration_mode"
    run = state_of(module, _Run, calibrator="brevitas", otherwise=otherwise)
    return run, cast("GraphModule", module)
