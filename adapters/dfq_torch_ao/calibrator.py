"""The calibrator "torch-ao": `prepare_fx`, observe, `convert_fx`."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch.ao.quantization.fx.custom_config import PrepareCustomConfig
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx, prepare_qat_fx

from dfq_plugins.errors import ModelError
from dfq_plugins.model_state import device_of, frozen_copy, preserve_global_state
from dfq_plugins.network.outputs import with_plain_outputs
from dfq_plugins.quantization.batches import checked_batches
from dfq_plugins.quantization.notices import silenced
from dfq_plugins.quantization.prepared import attach_state, require_prepared_shape
from dfq_plugins.types import Calibrator
from dfq_torch_ao.clipping import observe_clipped_values
from dfq_torch_ao.conversion_checks import require_calibrated, require_quantized
from dfq_torch_ao.coverage import describe_coverage
from dfq_torch_ao.engines import active_engine, resolve_engine
from dfq_torch_ao.export import drop_tensor_annotations, export_torchscript, load_torchscript
from dfq_torch_ao.float_operations import hide_from_lowering, show_again
from dfq_torch_ao.input_range import fix_input_range
from dfq_torch_ao.notices import NOTICES
from dfq_torch_ao.options import TorchAoOptions
from dfq_torch_ao.output_range import widen_output_range
from dfq_torch_ao.qconfig import STORAGE_BITS, activation_range, make_qconfig_mapping, match_histogram_levels
from dfq_torch_ao.run import Run, run_of
from dfq_torch_ao.saturation import saturate_activations
from dfq_torch_ao.tensor_formats import record_formats
from dfq_torch_ao.tracing import preparation_error
from dfq_torch_ao.training import collecting_ranges, freeze_ranges, in_training, start_training

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from torch import nn
    from torch.fx import GraphModule

    from dfq_plugins.types import Artifact, Coverage, InputSpec, Recipe

FULL_RANGE = 2**STORAGE_BITS - 1
"""Highest activation integer where the range is not reduced."""


class TorchAoCalibrator(Calibrator):
    """Calibrates a model with torch.ao's observers and converts it to torch.ao's int8 modules.

    Every layer that torch.ao has a kernel for is quantized, including the first and the last: activations to unsigned
    integers per tensor, weights symmetrically per output channel. Below 8 bits the values use fewer levels inside int8
    storage. The weights are packed for one engine; the process's engine is switched only for packing and checking, and
    then restored.
    """

    def __init__(self, options: TorchAoOptions | None = None) -> None:
        self.options = options or TorchAoOptions()

    def prepare(self, model: nn.Module, spec: InputSpec, recipe: Recipe, *, training: bool = False) -> GraphModule:
        """Return a traced copy of `model` with BatchNorm folded and observers inserted.

        For training, BatchNorm stays next to its convolution, as in torch.ao, and is folded by `convert`; fake
        quantizers replace the observers.

        If the specification defines the input range, the input quantizer uses it, regardless of the data.

        Raises:
            UsageError: the recipe or the engine is not supported.
            ModelError: FX cannot trace the model.
        """
        engine = resolve_engine(self.options.engine)
        private = frozen_copy(model).float()
        exceptions = PrepareCustomConfig().set_non_traceable_module_names(list(self.options.non_traceable))
        with silenced(NOTICES), preserve_global_state():
            mapping = make_qconfig_mapping(recipe, self.options, engine, training=training)
            insert = prepare_qat_fx if training else prepare_fx
            try:
                sample = torch.zeros(1, *spec.shape)
                with_plain_outputs(private, torch.zeros(2, *spec.shape))
                ready = in_training(private) if training else private
                prepared: GraphModule = insert(ready, mapping, (sample,), exceptions).eval()
            except Exception as error:
                raise preparation_error(private, error) from error
        if recipe.activation_bits < STORAGE_BITS:
            hide_from_lowering(prepared)
            match_histogram_levels(prepared)
        observe_clipped_values(prepared)
        if spec.input_range is not None:
            fix_input_range(prepared, spec.input_range)
        highest = activation_range(recipe, self.options, engine)[1]
        attach_state(prepared, Run(spec, recipe, engine, highest, self.options.non_traceable, training))
        return prepared

    def calibrate(self, prepared: nn.Module, batches: Iterable[torch.Tensor]) -> None:
        """Run every batch `(samples, *shape)` through the observers.

        Raises:
            UsageError: the module does not come from `prepare()`.
            DataError: there is no batch, or one has the wrong shape or holds NaN or infinity.
        """
        graph, run = run_of(prepared)
        with torch.no_grad(), collecting_ranges(graph) if run.training else nullcontext():
            for batch in checked_batches(batches, run.spec, device_of(graph)):
                graph(batch)
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
            try:
                converted: GraphModule = convert_fx(observed)
                if run.recipe.activation_bits < STORAGE_BITS:
                    show_again(converted)
                formats = record_formats(converted, run.spec)
            except (RuntimeError, NotImplementedError) as error:
                cause = str(error).strip().split("\n", maxsplit=1)[0]
                raise ModelError(
                    f"The engine {run.engine!r} of torch.ao cannot run this model in int8: {cause.rstrip('.')}. "
                    "Try another engine, or keep the layer in float with the option non_traceable."
                ) from error
            require_quantized(converted)
            if run.recipe.activation_bits < STORAGE_BITS:
                saturate_activations(converted, formats, run.highest_activation)
        drop_tensor_annotations(converted)
        attach_state(converted, run)
        return converted

    def describe(self, converted: nn.Module) -> Coverage:
        """List the layers that compute in integers, and those that stay in float, with the reason."""
        graph, run = run_of(converted)
        with active_engine(run.engine):
            formats = record_formats(graph, run.spec)
        return describe_coverage(graph, formats, run)

    def export(self, converted: nn.Module, spec: InputSpec, path: Path) -> tuple[Artifact, ...]:
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
