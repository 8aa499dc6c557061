"""The calibrator "torchao": `prepare_pt2e`, observe, `convert_pt2e`."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e, prepare_qat_pt2e

from dfq_plugins.inputs import blank_inputs, moved
from dfq_plugins.model_state import device_of, preserve_global_state
from dfq_plugins.network.fit import fitted_copy
from dfq_plugins.network.graph_inputs import take_inputs_as_given, take_inputs_in_order
from dfq_plugins.network.tracing.batch_norm import fold_batch_norms
from dfq_plugins.network.tracing.trace import trace
from dfq_plugins.quantization.batches import checked_batches
from dfq_plugins.quantization.notices import silenced
from dfq_plugins.quantization.prepared import attach_state, require_prepared_shape
from dfq_plugins.quantization.step_errors import step_errors
from dfq_plugins.types import Calibrator
from dfq_torchao.batch_norm import batch_norms_hidden, show_again
from dfq_torchao.capture import allow_modes, capture, module_at
from dfq_torchao.conversion_checks import require_calibrated, require_quantized
from dfq_torchao.coverage import describe_coverage
from dfq_torchao.export import export_programs, load_artifact
from dfq_torchao.keeping import KeepingFloat, check_names
from dfq_torchao.notices import NOTICES
from dfq_torchao.options import TorchaoOptions
from dfq_torchao.quantizers import make_quantizer, reduces_range
from dfq_torchao.ranges import fix_input_ranges, match_histogram_levels, widen_output_range
from dfq_torchao.run import Run, run_of
from dfq_torchao.training import collecting_ranges, freeze_ranges, start_training
from dfq_torchao.unread import drop_unread_tensors
from dfq_torchao.way_round import rewrite, way_round

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from torch import nn
    from torch.fx import GraphModule

    from dfq_plugins.types import Artifact, Coverage, Inputs, Recipe, Specification


class TorchaoCalibrator(Calibrator):
    """Calibrates a model in torchao's PT2E flow, with the observers that a quantizer places.

    The network is captured by torch.export for any batch size. The converted model is torchao's reference model: a
    graph of float operations between changes to and from integers, which Inductor, AOTInductor and ExecuTorch replace
    by int8 kernels.
    """

    several_inputs = True

    def __init__(self, options: TorchaoOptions | None = None) -> None:
        self.options = options or TorchaoOptions()

    def prepare(self, model: nn.Module, spec: Specification, recipe: Recipe, *, training: bool = False) -> GraphModule:
        """Return the exported graph of a copy of `model` with BatchNorm folded and observers inserted.

        For training, fake quantizers replace the observers. BatchNorm is folded there, too: torchao's training graph
        ignores the epsilon of the layer.

        If the specification defines the input range, the input quantizer uses it, regardless of the data.

        Raises:
            UsageError: the recipe, the quantizer or a name in `keep_float` is not supported.
            PluginError: the quantizer's framework is not installed.
            ModelError: the network cannot be traced or exported, or the quantizer does not take it.
        """
        with silenced(NOTICES), preserve_global_state():
            quantizer = make_quantizer(self.options, recipe, training=training)
        private = fitted_copy(model)
        check_names(self.options.keep_float, private)
        private = trace(private, spec, way_round=rewrite)
        fold_batch_norms(private)
        with silenced(NOTICES), preserve_global_state():
            with step_errors("torch.export", "prepare", private, rewrite):
                graph = capture(private, spec)
            if self.options.keep_float:
                quantizer = KeepingFloat(quantizer, self.options.keep_float)
            insert = prepare_qat_pt2e if training else prepare_pt2e
            with step_errors("torchao", "prepare", graph, _advice(graph)), batch_norms_hidden(graph):
                prepared: GraphModule = insert(graph, quantizer)
            show_again(prepared)
        allow_modes(prepared).eval()
        match_histogram_levels(prepared)
        fix_input_ranges(prepared, spec)
        take_inputs_as_given(prepared, spec)
        attach_state(prepared, Run(spec, recipe, self.options, reduces_range(self.options), training))
        return prepared

    def calibrate(self, prepared: nn.Module, batches: Iterable[Inputs]) -> None:
        """Run every batch `(samples, *shape)` through the observers.

        Raises:
            UsageError: the module does not come from `prepare()`.
            DataError: there is no batch, or one has the wrong shape or holds NaN or infinity.
        """
        graph, run = run_of(prepared)
        collecting = collecting_ranges(graph) if run.training else nullcontext()
        errors = step_errors("torchao", "calibrate", graph, _advice(graph))
        with silenced(NOTICES), torch.no_grad(), errors, collecting:
            for batch in checked_batches(batches, run.spec, device_of(graph)):
                run.spec.run(graph, batch)
        if run.training:
            widen_output_range(graph, run.options.output_margin)
            start_training(graph, observe=run.options.training_ranges == "moving-average")

    def freeze_ranges(self, prepared: nn.Module) -> None:
        """Stop observing activation ranges; weight ranges keep following the weights."""
        freeze_ranges(run_of(prepared)[0])

    def convert(self, prepared: nn.Module) -> GraphModule:
        """Return torchao's reference model, with int8 weights; `prepared` is not changed.

        Raises:
            UsageError: the model was not calibrated.
            ModelError: torchao cannot convert the model, or nothing in it was quantized.
        """
        graph, run = run_of(prepared)
        require_calibrated(graph)
        observed = copy.deepcopy(graph).eval()
        with silenced(NOTICES), preserve_global_state(), torch.no_grad():
            with step_errors("torchao", "convert", observed, _advice(observed)):
                if run.training:
                    freeze_ranges(observed)
                    blank = moved(blank_inputs(run.spec, 1), device_of(observed))
                    run.spec.run(observed, blank)  # the ranges of weights are taken in a forward pass
                else:
                    widen_output_range(observed, run.options.output_margin)
                take_inputs_in_order(observed)
                with batch_norms_hidden(observed):
                    converted: GraphModule = convert_pt2e(observed)
                show_again(converted)
            require_quantized(converted, run.options.quantizer)
        drop_unread_tensors(converted)
        allow_modes(converted).eval().requires_grad_(requires_grad=False)
        take_inputs_as_given(converted, run.spec)
        attach_state(converted, run)
        return converted

    def describe(self, converted: nn.Module) -> Coverage:
        """List the layers that read integers, and those that stay in float, with the reason."""
        graph, run = run_of(converted)
        return describe_coverage(graph, run)

    def export(self, converted: nn.Module, spec: Specification, path: Path) -> tuple[Artifact, ...]:
        """Write the programs that the options ask for to the folder `path`, load each and compare.

        `model.exported.pt2` is the reference model for torch.export; `model.aotinductor.pt2` is compiled for this
        machine; `model.pte` runs in ExecuTorch.

        Raises:
            ArtifactError: a program does not agree with `converted`; it is kept with the suffix `.rejected`.
            DataError: the folder cannot be written.
        """
        graph, run = run_of(converted)
        require_prepared_shape(spec, run.spec)
        with silenced(NOTICES), preserve_global_state(), torch.no_grad():
            return export_programs(graph, spec, path, run)

    def load(self, path: Path) -> nn.Module:
        """Return the program of an exported file as a module on the CPU.

        Programs of torch.export are read without Python's pickle. A package of AOTInductor is machine code: load only
        files that you trust.

        Raises:
            UsageError: the file has another ending.
            PluginError: the file needs ExecuTorch, which is not installed.
            DataError: the file is damaged, or was compiled for another kind of machine.
        """
        with silenced(NOTICES), preserve_global_state():
            return load_artifact(path)


def _advice(graph: GraphModule) -> Callable[[str], str]:
    """Return the function from the name of a node at fault to the next step."""
    find = module_at(graph)
    return lambda name: way_round(find(name) or ("" if name not in dict(graph.named_modules()) else name))
