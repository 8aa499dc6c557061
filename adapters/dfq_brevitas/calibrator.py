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
from dfq_brevitas.input_range import fix_input_ranges, is_signed, quantizers_before_weights, replace_input_quantizers
from dfq_brevitas.notices import NOTICES
from dfq_brevitas.options import BrevitasOptions
from dfq_brevitas.quantized_once import weights_quantized_once
from dfq_brevitas.quantizers import FLOAT_BITS, LAYERS, quantizer_maps
from dfq_brevitas.reconstruction import quantized_view
from dfq_brevitas.shared_ranges import covering_every_call
from dfq_brevitas.training import learned_scales, take_gradients
from dfq_brevitas.way_round import way_round
from dfq_brevitas.weights import apply_gptq, learn_rounding
from dfq_plugins.errors import ModelError, UsageError
from dfq_plugins.inputs import moved, rows
from dfq_plugins.model_state import device_of
from dfq_plugins.network.fit import fitted_copy
from dfq_plugins.network.graph_inputs import input_nodes, take_inputs_as_given
from dfq_plugins.network.tracing.trace import example_inputs, trace
from dfq_plugins.quantization.batches import checked_batches
from dfq_plugins.quantization.dynamic_sizes import require_other_sizes
from dfq_plugins.quantization.notices import silenced
from dfq_plugins.quantization.prepared import attach_state, require_prepared_shape, state_of
from dfq_plugins.quantization.step_errors import step_errors
from dfq_plugins.types import Calibrator, InputSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from torch import nn

    from dfq_brevitas.options import Target
    from dfq_plugins.types import Artifact, Coverage, Inputs, QuantizedView, Recipe, Specification

WEIGHT_BITS = range(1, 9)
ACTIVATION_BITS = range(2, 9)
_KEPT_SAMPLES = 16
"""Calibration inputs kept for comparing exported files: they give millions of integers in any image network."""


@dataclass(frozen=True)
class _Run:
    """The settings of `prepare`, stored with the graph module for the later steps.

    `samples` are the first calibration inputs, used to compare exports; None before calibration.
    """

    spec: Specification
    recipe: Recipe
    training: bool = False
    samples: Inputs | None = None
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

    several_inputs = True

    def __init__(self, options: BrevitasOptions | None = None) -> None:
        self.options = options or BrevitasOptions()

    def prepare(self, model: nn.Module, spec: Specification, recipe: Recipe, *, training: bool = False) -> GraphModule:
        """Return a traced copy of `model` with BatchNorm folded and Brevitas's quantizers inserted.

        For training, weights, biases and the scales of all quantizers become trainable after calibration, except for
        the scale of a network input whose range is known.

        Raises:
            UsageError: the recipe is not supported.
            ModelError: the model cannot be traced, or contains nothing to quantize.
        """
        _require_supported(recipe, self.options)
        if self.options.target == "finn":
            require_one_input(spec)
        private = fitted_copy(model)
        if self.options.dynamic_sizes:
            require_other_sizes(private, spec)
        private = trace(private, spec, way_round=way_round)
        with silenced(NOTICES):
            merge = self.options.merges_batch_norm(recipe.weight_bits, training=training)
            traced = float_graph(private, self.options, merge_batch_norm=merge)
            if self.options.target == "finn":
                form = finn_form(traced, require_one_input(spec))
                graph = finn_quantized_graph(form, recipe, self.options, training=training)
            else:
                samples = tuple(example_inputs(spec, 2, private).values())
                graph = quantized_graph(traced, recipe, self.options, samples=samples, training=training)
            _require_quantized(graph, model, keeps_ends=self.options.keeps_ends(recipe.weight_bits))
            if recipe.activation_bits != FLOAT_BITS:
                self._configure_input(graph, spec, recipe)
        take_inputs_as_given(graph, spec)
        attach_state(graph, _Run(spec, recipe, training, target=self.options.target))
        return graph.eval()

    def _configure_input(self, graph: GraphModule, spec: Specification, recipe: Recipe) -> None:
        """Set the input quantizer to the requested width, and make it unsigned if it needs no sign."""
        bits = self.options.input_bits
        maps = quantizer_maps(replace(recipe, activation_bits=bits), self.options)
        identities = maps.identities
        inputs = list(input_nodes(graph, spec))
        if bits != recipe.activation_bits and self.options.target != "finn":
            # Whatever stands between the input and the first layer with weights has the input's width.
            kinds = {kind: (kind, arguments) for kind, arguments in maps.activations.values()}
            for name, module in list(quantizers_before_weights(graph, [placeholder for placeholder, _ in inputs])):
                signed = identities["signed" if is_signed(module) else "unsigned"]
                kind, arguments = kinds.get(type(module), signed)
                graph.set_submodule(name, kind(**arguments).eval())
        for placeholder, one in inputs:
            input_range = one.input_range if self.options.known_input_range else None
            # In FINN, the thresholds of a quantizer without a ReLU are signed.
            unsigned = input_range is not None and input_range[0] >= 0 and self.options.target != "finn"
            if unsigned or bits != recipe.activation_bits:
                replace_input_quantizers(graph, placeholder, identities["unsigned" if unsigned else "signed"])

    def calibrate(self, prepared: nn.Module, batches: Iterable[Inputs]) -> None:
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
                    data.spec.run(graph, inputs)
            graph.eval()
            if run.target == "finn":
                share_scales(graph)
            if self.options.known_input_range:
                fix_input_ranges(graph, run.spec)
            self._refine(graph, data)
        if run.target == "finn":
            release_clipping(graph)
        if run.training:
            take_gradients(graph, run.spec if self.options.known_input_range else None)
        attach_state(graph, replace(run, samples=moved(rows(next(iter(data)), slice(_KEPT_SAMPLES)), "cpu")))

    def _refine(self, graph: GraphModule, data: _Batches) -> None:
        # The first run with quantization enabled computes the weight scales, which are fixed from then on.
        data.spec.run(graph, rows(next(iter(data)), slice(1)))
        if self.options.gptq:
            apply_gptq(graph, data, data.spec)
        if self.options.learned_round:
            learn_rounding(graph, data, self.options.learned_round_steps, data.spec)
        if self.options.bias_correction == "network":
            layers = sum(map(is_weight_layer, graph.modules()))
            correct_biases(graph, data, self.options.correction_strength_for(layers), data.spec)
        elif self.options.bias_correction == "layer":
            with bias_correction_mode(graph):
                for inputs in data:
                    data.spec.run(graph, inputs)
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

    def quantized_view(self, prepared: nn.Module) -> QuantizedView:
        """Return the quantizers for reconstruction.

        Raises:
            UsageError: the weights are binary, or their scales follow them in training.
        """
        run, graph = _run_of(prepared)
        return quantized_view(graph, run.spec, run.recipe, self.options, training=run.training)

    def describe(self, converted: nn.Module) -> Coverage:
        """List layers, activations and additions with the bit widths that their quantizers report."""
        run, graph = _run_of(converted)
        with torch.no_grad(), silenced(NOTICES), weights_quantized_once(graph):
            return describe_coverage(graph, run.recipe)

    def export(self, converted: nn.Module, spec: Specification, path: Path) -> tuple[Artifact, ...]:
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
        return export_onnx(
            graph,
            run.samples,
            path,
            spec=spec,
            with_qcdq=run.recipe.weight_bits > 1,
            target=run.target,
            dynamic_sizes=self.options.dynamic_sizes,
        )

    def load(self, path: Path) -> nn.Module:
        """Return a module that runs either file in ONNX Runtime, in exact arithmetic.

        Raises:
            DataError: the file is damaged.
        """
        return load_exported(path)


class _Batches:
    """Checked batches on the model's device that can be iterated several times."""

    def __init__(self, batches: Iterable[Inputs], spec: Specification, device: torch.device) -> None:
        once = iter(batches) is batches
        self._batches: Iterable[Inputs] = list(batches) if once else batches
        self.spec, self._device = spec, device

    def __iter__(self) -> Iterator[Inputs]:
        return checked_batches(self._batches, self.spec, self._device)


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


def require_one_input(spec: Specification) -> InputSpec:
    """Return the specification of the only input, as FINN's networks have.

    Raises:
        UsageError: there are several inputs.
    """
    if isinstance(spec, InputSpec):
        return spec
    raise UsageError(
        f"target=finn takes networks with one input, but this specification has {', '.join(spec.order)}. Use the "
        "target 'generic', or quantize the part of the network that takes one input."
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
