"""Takes a torch network or an ONNX file through ONNX Runtime's static quantization: export, calibrate, quantize."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import onnx

from dfq_onnxruntime.coverage import read_coverage
from dfq_onnxruntime.export import export_program, load_program
from dfq_onnxruntime.float_nodes import named_float_nodes, nodes_touching
from dfq_onnxruntime.float_program import float_program, input_names
from dfq_onnxruntime.formats import least_opset, require_supported
from dfq_onnxruntime.options import OnnxRuntimeOptions
from dfq_onnxruntime.quantizing import operators_for, quantized_program
from dfq_onnxruntime.ranges import activation_ranges
from dfq_onnxruntime.saturation import reduces_range
from dfq_onnxruntime.way_round import way_round
from dfq_plugins.errors import UsageError
from dfq_plugins.inputs import cloned, count, joined, rows
from dfq_plugins.network.trial import blank_run
from dfq_plugins.quantization.batches import checked_batches
from dfq_plugins.quantization.onnx_file import OnnxNetwork
from dfq_plugins.quantization.onnx_module import OnnxModule
from dfq_plugins.quantization.prepared import attach_state, require_prepared_shape, state_of
from dfq_plugins.quantization.step_errors import step_errors
from dfq_plugins.types import Calibrator

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from onnxruntime.quantization.calibrate import TensorsData
    from torch import nn

    from dfq_plugins.types import Artifact, Coverage, Inputs, Recipe, Specification

NAME = "onnxruntime"

SAMPLES_KEPT = 16
"""Calibration inputs kept for checking exported artifacts."""


@dataclass(frozen=True)
class _Run:
    """What the later steps need to know, stored with the module.

    `names` are the program's inputs in the order of the specification. `ranges`, the tensors that are not finite and
    `samples`, the first calibration inputs, are None or empty before calibration.
    """

    spec: Specification
    recipe: Recipe
    names: tuple[str, ...]
    batch_size: int | None
    ranges: TensorsData | None = None
    infinite: frozenset[str] = frozenset()
    samples: Inputs | None = None
    left_out: tuple[tuple[str, str], ...] = ()


class OnnxRuntimeCalibrator(Calibrator):
    """Quantizes to ONNX programs with QuantizeLinear and DequantizeLinear, which ONNX Runtime fuses; see `Calibrator`.

    Each step returns a module that runs its program in ONNX Runtime: `session` is the framework's own object, and
    `program` what a file of it would hold.

    Args:
        options: number formats, and how ranges are chosen.
    """

    several_inputs = True

    def __init__(self, options: OnnxRuntimeOptions | None = None) -> None:
        self._options = options or OnnxRuntimeOptions()

    def prepare(self, model: nn.Module, spec: Specification, recipe: Recipe, *, training: bool) -> nn.Module:
        """Return the float program that will be quantized, with BatchNorm folded.

        Args:
            model: a torch network, or an ONNX file as an `OnnxNetwork`.
            spec: its inputs.
            recipe: bit widths.
            training: must be False.

        Raises:
            UsageError: a bit width or an operator is not supported, a name fits no node, or training was asked for.
            ModelError: the network cannot be exported, or does not accept inputs of the shape in the spec.
        """
        require_supported(recipe, training=training)
        operators_for(self._options)
        blank_run(model, spec)
        program = float_program(model, spec, least_opset(recipe))
        prepared = _module(program, model)
        named_float_nodes(onnx.load_from_string(program).graph, self._options.float_nodes)
        size = model.batch_size if isinstance(model, OnnxNetwork) else None
        attach_state(prepared, _Run(spec, recipe, input_names(prepared, spec), size))
        return prepared

    def calibrate(self, prepared: nn.Module, batches: Iterable[Inputs]) -> None:
        """Let ONNX Runtime see the batches piece by piece, and compute the range of each activation.

        Raises:
            UsageError: the module does not come from `prepare()`.
            DataError: there is no batch, or one has the wrong shape or holds NaN or infinity.
            ModelError: ONNX Runtime cannot run the network on the data.
        """
        run, program = _run_of(prepared), _program_of(prepared)
        kept: list[Inputs] = []
        with step_errors("ONNX Runtime", "calibrate", prepared, way_round):
            ranges, infinite = activation_ranges(
                program,
                _keeping(checked_batches(batches, run.spec), kept),
                run.names,
                self._options,
                operators_for(self._options),
                batch_size=run.batch_size,
            )
        attach_state(prepared, replace(run, ranges=ranges, infinite=infinite, samples=joined(kept)))

    def convert(self, prepared: nn.Module) -> nn.Module:
        """Return the quantized program, run with ONNX Runtime's default optimizations as users run it.

        Raises:
            UsageError: the model was not calibrated.
            ModelError: ONNX Runtime cannot quantize the network.
        """
        run, program = _run_of(prepared), _program_of(prepared)
        if run.ranges is None:
            raise UsageError("There are no ranges yet. Call calibrate() before convert().")
        inputs = dict(zip(run.names, run.spec.named.values(), strict=True))
        with step_errors("ONNX Runtime", "convert", prepared, way_round):
            quantized = quantized_program(
                program,
                run.ranges,
                run.infinite,
                inputs,
                run.recipe,
                self._options,
                reduce_range=reduces_range(self._options, run.recipe),
            )
            converted = _module(quantized, prepared)
        graph = onnx.load_from_string(program).graph
        named = dict.fromkeys(named_float_nodes(graph, self._options.float_nodes), "left out by name")
        infinite = dict.fromkeys(nodes_touching(graph, run.infinite), "reads or returns infinite values")
        attach_state(converted, replace(run, ranges=None, left_out=tuple((infinite | named).items())))
        return converted

    def describe(self, converted: nn.Module) -> Coverage:
        """Report the number format of each operator's input and weight, and which operators stay in float."""
        run = _run_of(converted)
        return read_coverage(_program_of(converted), operators_for(self._options), dict(run.left_out))

    def export(self, converted: nn.Module, spec: Specification, path: Path) -> tuple[Artifact, ...]:
        """Write `model_int8.onnx` to the folder `path`, run it, and compare it with `converted`.

        Raises:
            ArtifactError: the file does not agree with the model; it is kept as `model_int8.onnx.rejected`.
            DataError: the folder cannot be written.
        """
        run = _run_of(converted)
        if run.samples is None or run.ranges is not None or not isinstance(converted, OnnxModule):
            raise UsageError("Only a converted model can be exported. Call calibrate() and convert() first.")
        require_prepared_shape(spec, run.spec)
        return export_program(converted, spec, path, samples=run.samples)

    def load(self, path: Path) -> nn.Module:
        """Return a module that runs `model_int8.onnx` in ONNX Runtime, with its default optimizations.

        Raises:
            DataError: the file is damaged.
        """
        return load_program(path)


def _module(program: bytes, model: nn.Module) -> OnnxModule:
    """Return a program as a module that is called as `model` is, and returns its outputs in the same structure."""
    if isinstance(model, OnnxNetwork):
        return OnnxNetwork(program, model.name)
    return OnnxModule(program, exact=False, structured=True)


def _run_of(module: nn.Module) -> _Run:
    return state_of(module, _Run, calibrator=NAME)


def _program_of(module: nn.Module) -> bytes:
    assert isinstance(module, OnnxModule)  # noqa: S101  it has the state that prepare() attaches to one
    return module.program


def _keeping(batches: Iterable[Inputs], kept: list[Inputs]) -> Iterator[Inputs]:
    """Yield the batches, and append copies of the first samples to `kept`."""
    for batch in batches:
        missing = SAMPLES_KEPT - sum(map(count, kept))
        if missing > 0 or not kept:
            kept.append(cloned(rows(batch, slice(missing))))
        yield batch
