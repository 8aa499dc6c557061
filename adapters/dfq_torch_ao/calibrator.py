"""The calibrator "torch-ao": `prepare_fx`, observe, `convert_fx`."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch.ao.quantization.fx.custom_config import PrepareCustomConfig
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx, prepare_qat_fx

from dfq_plugins.inputs import blank_inputs
from dfq_plugins.model_state import device_of, preserve_global_state
from dfq_plugins.network.fit import fitted_copy
from dfq_plugins.network.graph_inputs import ordered, take_inputs_as_given
from dfq_plugins.network.tracing.batch_norm import fold_batch_norms
from dfq_plugins.network.tracing.trace import trace
from dfq_plugins.quantization.batches import checked_batches
from dfq_plugins.quantization.notices import silenced
from dfq_plugins.quantization.prepared import attach_state, require_prepared_shape
from dfq_plugins.quantization.step_errors import step_errors
from dfq_plugins.types import Calibrator
from dfq_torch_ao.clipping import observe_clipped_values
from dfq_torch_ao.conversion_checks import require_calibrated, require_quantized
from dfq_torch_ao.coverage import describe_coverage
from dfq_torch_ao.engines import active_engine, resolve_engine
from dfq_torch_ao.export import drop_tensor_annotations, export_torchscript, load_torchscript
from dfq_torch_ao.fixed_ranges import observe_inputs, reduce_fixed_ranges
from dfq_torch_ao.float_operations import below_eight_bits, hide_from_lowering, show_again, without_right_kernel
from dfq_torch_ao.input_range import fix_input_ranges
from dfq_torch_ao.notices import NOTICES
from dfq_torch_ao.options import TorchAoOptions
from dfq_torch_ao.output_range import widen_output_range
from dfq_torch_ao.qconfig import (
    STORAGE_BITS,
    activation_range,
    make_qconfig_mapping,
    match_histogram_levels,
    new_activation_observer,
)
from dfq_torch_ao.rewrites import drop_tuple_observers, record_results, rewrite
from dfq_torch_ao.run import Run, run_of
from dfq_torch_ao.saturation import saturate_activations
from dfq_torch_ao.tail import FloatCall, hide_tail, show_tail
from dfq_torch_ao.tensor_formats import record_formats
from dfq_torch_ao.training import collecting_ranges, freeze_ranges, start_training
from dfq_torch_ao.transposed import cut_margins, enlarge_transposed_kernels
from dfq_torch_ao.way_round import way_round

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from torch import nn
    from torch.fx import GraphModule

    from dfq_plugins.types import Artifact, Coverage, Inputs, Recipe, Specification

FULL_RANGE = 2**STORAGE_BITS - 1
"""Highest activation integer where the range is not reduced."""


class TorchAoCalibrator(Calibrator):
    """Calibrates a model with torch.ao's observers and converts it to torch.ao's int8 modules.

    Every layer that torch.ao has a kernel for is quantized, including the first and the last: activations to unsigned
    integers per tensor, weights symmetrically per output channel. Below 8 bits the values use fewer levels inside int8
    storage. The weights are packed for one engine; the process's engine is switched only for packing and checking, and
    then restored.
    """

    several_inputs = True

    def __init__(self, options: TorchAoOptions | None = None) -> None:
        self.options = options or TorchAoOptions()

    def prepare(self, model: nn.Module, spec: Specification, recipe: Recipe, *, training: bool = False) -> GraphModule:
        """Return a traced copy of `model` with BatchNorm folded and observers inserted.

        For training, BatchNorm stays next to its convolution, as in torch.ao, and is folded by `convert`; fake
        quantizers replace the observers.

        If the specification defines the input range, the input quantizer uses it, regardless of the data.

        Raises:
            UsageError: the recipe or the engine is not supported.
            ModelError: FX cannot trace the model.
        """
        engine = resolve_engine(self.options.engine)
        opaque = self.options.non_traceable
        private = trace(fitted_copy(model), spec, opaque=opaque, way_round=way_round)
        if not training:
            fold_batch_norms(private)
        exceptions = PrepareCustomConfig().set_non_traceable_module_names(list(self.options.non_traceable))
        exceptions.set_non_traceable_module_classes([FloatCall])
        with silenced(NOTICES), preserve_global_state():
            mapping = make_qconfig_mapping(recipe, self.options, engine, training=training)
            insert = prepare_qat_fx if training else prepare_fx
            with step_errors("torch.ao", "prepare", private, way_round):
                samples = ordered(blank_inputs(spec, 1))
                rewrite(private, samples)
                hide_tail(private)
                prepared: GraphModule = insert(private.train(training), mapping, samples, exceptions).eval()
                results = record_results(prepared, samples)
                drop_tuple_observers(prepared, results)
                missing = show_tail(prepared) | without_right_kernel(prepared, results, engine)
        highest = activation_range(recipe, self.options, engine)[1]
        observe_inputs(prepared, new_activation_observer(recipe, self.options, engine, training=training))
        if recipe.activation_bits < STORAGE_BITS:
            missing |= below_eight_bits(prepared)
            match_histogram_levels(prepared)
        else:
            missing |= reduce_fixed_ranges(prepared, highest)
        hide_from_lowering(prepared, missing)
        observe_clipped_values(prepared)
        fix_input_ranges(prepared, spec)
        take_inputs_as_given(prepared, spec)
        attach_state(prepared, Run(spec, recipe, engine, highest, self.options.non_traceable, training))
        return prepared

    def calibrate(self, prepared: nn.Module, batches: Iterable[Inputs]) -> None:
        """Run every batch `(samples, *shape)` through the observers.

        Raises:
            UsageError: the module does not come from `prepare()`.
            DataError: there is no batch, or one has the wrong shape or holds NaN or infinity.
        """
        graph, run = run_of(prepared)
        collecting = collecting_ranges(graph) if run.training else nullcontext()
        with torch.no_grad(), collecting, step_errors("torch.ao", "calibrate", graph, way_round):
            for batch in checked_batches(batches, run.spec, device_of(graph)):
                run.spec.run(graph, batch)
        if run.training:
            if run.highest_activation == FULL_RANGE:
                widen_output_range(graph, self.options.output_margin)
            start_training(graph, observe=self.options.training_ranges == "moving-average")

    def freeze_ranges(self, prepared: nn.Module) -> None:
        """Stop observing activation ranges; weight ranges keep following the weights."""
        freeze_ranges(run_of(prepared)[0])

    def convert(self, prepared: nn.Module) -> GraphModule:
        """Return torch.ao's int8 model with its weights packed for the engine; `prepared` is not changed.

        Raises:
            UsageError: the model was not calibrated.
            ModelError: torch.ao or the engine cannot convert or run the model, or nothing in it was quantized.
        """
        graph, run = run_of(prepared)
        require_calibrated(graph)
        observed = copy.deepcopy(graph).cpu().eval()  # int8 kernels exist for the CPU only
        if run.highest_activation == FULL_RANGE and not run.training:
            widen_output_range(observed, self.options.output_margin)
        with silenced(NOTICES), preserve_global_state(), active_engine(run.engine):
            with step_errors(f"torch.ao with the engine {run.engine!r}", "convert", observed, _other_engine):
                margins = enlarge_transposed_kernels(observed, run.engine)
                converted: GraphModule = convert_fx(observed)
                cut_margins(converted, margins)
                show_again(converted)
                formats = record_formats(converted, run.spec)
            require_quantized(converted)
            if run.recipe.activation_bits < STORAGE_BITS:
                saturate_activations(converted, formats, run.highest_activation)
        drop_tensor_annotations(converted)
        take_inputs_as_given(converted, run.spec)
        attach_state(converted, run)
        return converted

    def describe(self, converted: nn.Module) -> Coverage:
        """List the layers that compute in integers, and those that stay in float, with the reason."""
        graph, run = run_of(converted)
        with active_engine(run.engine):
            formats = record_formats(graph, run.spec)
        return describe_coverage(graph, formats, run)

    def export(self, converted: nn.Module, spec: Specification, path: Path) -> tuple[Artifact, ...]:
        """Write the TorchScript program `model.torchscript.pt` to the folder `path`, load it and compare.

        Raises:
            ArtifactError: the loaded program does not agree with `converted`; it is kept as
                `model.torchscript.pt.rejected`.
            DataError: the folder cannot be written.
        """
        graph, run = run_of(converted)
        require_prepared_shape(spec, run.spec)
        with silenced(NOTICES), preserve_global_state(), active_engine(run.engine):
            return export_torchscript(graph, spec, path, run.engine)

    def load(self, path: Path) -> nn.Module:
        """Return the TorchScript program of a file on the CPU, its weights packed for the engine of the export.

        torch's own C++ reader reads the archive; Python's pickle is not involved. But the program itself runs whatever
        TorchScript operators it holds: load only files that you trust, as with any program.

        Raises:
            UsageError: this build of torch does not have that engine.
            DataError: the file is damaged.
        """
        with silenced(NOTICES), preserve_global_state():
            return load_torchscript(path, default_engine=self.options.engine)


def _other_engine(name: str) -> str:
    named = f"={(name,)}" if name else ""
    return f"Try another engine, or keep the layer in float with the option non_traceable{named}."
