"""Takes a float model through one of NVIDIA's frameworks: insert quantizers, calibrate, export to ONNX."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from dfq_plugins.errors import ModelError, UsageError
from dfq_plugins.inputs import count, joined, map_inputs, moved, random_inputs, rows
from dfq_plugins.model_state import device_of
from dfq_plugins.network.fit import fitted_copy
from dfq_plugins.network.trial import blank_run
from dfq_plugins.quantization.batches import checked_batches
from dfq_plugins.quantization.notices import silenced
from dfq_plugins.quantization.prepared import attach_state, require_prepared_shape, state_of
from dfq_plugins.quantization.step_errors import step_errors
from dfq_plugins.types import Calibrator
from dfq_shared.tensorrt.coverage import describe_coverage
from dfq_shared.tensorrt.inputs import fix_ranges, layers_before_weights, layers_on_inputs
from dfq_shared.tensorrt.observers import observe, start_observing
from dfq_shared.tensorrt.quantizers import calibrated_inputs, is_integer, quantized_modules
from dfq_shared.tensorrt.ranges import load_activation_range, load_weight_range
from dfq_shared.tensorrt.reconstruction import quantized_view
from dfq_shared.tensorrt.residual import RESIDUAL_BITS, add_residual_quantizers
from dfq_shared.tensorrt.training import fix_ranges_after_training, learned_ranges, start_training

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from torch import nn

    from dfq_plugins.types import Artifact, Coverage, Inputs, QuantizedView, Recipe, Specification
    from dfq_shared.tensorrt.backend import Backend
    from dfq_shared.tensorrt.options import RangeOptions

NARROWEST, WIDEST = 2, 8
"""Bit widths that can be exported: one bit has no level except zero, and ONNX has no integer above eight bits."""

SAMPLES_KEPT = 16
"""Calibration inputs kept for checking exported artifacts: they give millions of integers in any image network."""


@dataclass(frozen=True)
class _Run:
    """The settings of `prepare`, stored with the module for the later steps.

    `samples` are the first calibration inputs, used to compare artifacts; None before calibration.
    """

    spec: Specification
    training: bool
    samples: Inputs | None = None


class TensorrtCalibrator(Calibrator):
    """Quantizes the inputs and weights of layers with symmetric ranges, as TensorRT does; see `Calibrator`.

    Args:
        backend: the framework.
        options: how ranges are chosen.
    """

    several_inputs = True

    def __init__(self, backend: Backend, options: RangeOptions) -> None:
        self._backend, self._options = backend, options

    def prepare(self, model: nn.Module, spec: Specification, recipe: Recipe, *, training: bool) -> nn.Module:
        """Return a copy in eval mode with the framework's quantized modules; it computes in float until calibrated.

        For training, its parameters become trainable after calibration.

        Raises:
            UsageError: a bit width cannot be exported.
            ModelError: the model has no layer that the framework can quantize, has weights that are not finite, or does
                not accept inputs of the shape in the spec.
        """
        _require_supported(recipe, self._options, self._backend.name)
        errors = step_errors(self._backend.name, "prepare", model, self._backend.way_round)
        with self._silenced(), errors:
            prepared = self._backend.quantized(self._fitted(model, spec), recipe, self._options).eval()
            _require_quantizable(prepared, model, self._backend, self._options)
            for _, module in quantized_modules(prepared):
                _each_quantizer(module, "disable_quant")
            blank_run(prepared, spec)
            if self._options.dynamic_sizes:
                _require_other_sizes(prepared, spec)
            if self._options.residual_quantizer:
                parameter = next(prepared.parameters())
                sample = moved(random_inputs(spec, 2), parameter.device, parameter.dtype)
                prepared = add_residual_quantizers(prepared, self._new_residual_quantizer, sample, spec)
            on_input = layers_on_inputs(prepared, spec)
            in_front = layers_before_weights(prepared, spec) | set(on_input)
            for name, module in quantized_modules(prepared):
                if name in in_front and is_integer(module.input_quantizer):
                    module.input_quantizer.num_bits = self._options.input_bits
                observe(name, module.input_quantizer, self._backend)
            fix_ranges(prepared, spec, on_input, self._options)
        attach_state(prepared, _Run(spec, training))
        return prepared

    def calibrate(self, prepared: nn.Module, batches: Iterable[Inputs]) -> None:
        """Collect the inputs of every layer over the batches, and let the framework compute each range.

        Raises:
            UsageError: the module does not come from `prepare()`.
            DataError: there is no batch, or one has the wrong shape or holds NaN or infinity.
            ModelError: finite inputs become infinite or NaN inside the model.
        """
        run = self._run_of(prepared)
        device = device_of(prepared)
        kept: list[Inputs] = []
        errors = step_errors(self._backend.name, "calibrate", prepared, self._backend.way_round)
        with torch.no_grad(), self._silenced(), errors:
            with _collecting(prepared):
                for batch in checked_batches(batches, run.spec, device):
                    first = rows(batch, slice(SAMPLES_KEPT - sum(map(count, kept))))
                    kept.append(map_inputs(lambda tensor: tensor.detach().cpu().clone(), first))
                    run.spec.run(prepared, batch)
            _load_ranges(prepared, self._backend, self._options, device)
            for _, module in quantized_modules(prepared):
                _each_quantizer(module, "enable_quant")
        if run.training:
            start_training(prepared, self._options)
        attach_state(prepared, replace(run, samples=joined(kept)))

    def scale_parameters(self, prepared: nn.Module) -> tuple[nn.Parameter, ...]:
        """Return the learned range limits, if ranges are trained."""
        return tuple(learned_ranges(prepared))

    def quantized_view(self, prepared: nn.Module) -> QuantizedView:
        """Return the quantizers for reconstruction.

        Raises:
            UsageError: the weight ranges follow the weights in training.
        """
        return quantized_view(prepared, self._options, training=self._run_of(prepared).training)

    def convert(self, prepared: nn.Module) -> nn.Module:
        """Return the calibrated module itself, which consists of the framework's fake-quantized modules.

        After training, learned ranges are fixed.

        Raises:
            UsageError: the model was not calibrated.
        """
        run = self._run_of(prepared)
        if run.samples is None:
            raise UsageError("Quantizers must see data before conversion. Call calibrate() first.")
        with self._silenced():
            fix_ranges_after_training(prepared.eval())
        for name, module in quantized_modules(prepared):
            if not module.input_quantizer._disabled and module.input_quantizer.amax is None:  # noqa: SLF001
                raise UsageError(f"{name!r} has no range yet. Call calibrate() before convert().")
        return prepared

    def describe(self, converted: nn.Module) -> Coverage:
        """Report which layers are quantized, with their ranges, and which modules stay in float."""
        return describe_coverage(converted, self._backend, pooling=self._options.pooling)

    def export(self, converted: nn.Module, spec: Specification, path: Path) -> tuple[Artifact, ...]:
        """Write the ONNX file to the folder `path`, run it in ONNX Runtime, and compare it with `converted`.

        Raises:
            ArtifactError: torch.onnx cannot export the model, or the file does not agree with it; the file is kept with
                the ending `.rejected`.
            DataError: the folder cannot be written.
        """
        from dfq_shared.tensorrt.export import export_onnx  # noqa: PLC0415  (loads ONNX Runtime only when needed)

        run = self._run_of(converted)
        if run.samples is None:
            raise UsageError("Only a calibrated model can be exported. Call calibrate() and convert() first.")
        require_prepared_shape(spec, run.spec)
        return export_onnx(
            converted,
            spec,
            path,
            backend=self._backend,
            samples=run.samples,
            batch_size=self._options.batch_size,
            dynamic_sizes=self._options.dynamic_sizes,
        )

    def load(self, path: Path) -> nn.Module:
        """Return a module that runs the ONNX file in ONNX Runtime, in exact arithmetic.

        Raises:
            DataError: the file is damaged.
        """
        from dfq_plugins.quantization.onnx_module import load_onnx  # noqa: PLC0415  (ONNX Runtime only when it is used)

        return load_onnx(path, structured=True)

    def _run_of(self, module: nn.Module) -> _Run:
        return state_of(module, _Run, calibrator=self._backend.name)

    def _fitted(self, model: nn.Module, spec: Specification) -> nn.Module:  # noqa: ARG002  (for adapters that run it)
        """Return the private copy of `model` that gets the quantizers."""
        return fitted_copy(model)

    def _silenced(self) -> AbstractContextManager[None]:
        return silenced(self._backend.notices, logger=self._backend.logger)

    def _new_residual_quantizer(self) -> nn.Module:
        return self._backend.new_quantizer(RESIDUAL_BITS, histogram=self._options.activations != "max")


def _require_supported(recipe: Recipe, options: RangeOptions, name: str) -> None:
    for tensor, bits in (("weights", recipe.weight_bits), ("activations", recipe.activation_bits)):
        if not NARROWEST <= bits <= WIDEST:
            raise UsageError(
                f"{name} supports {NARROWEST} to {WIDEST} bits, got {bits} bits for {tensor} ({recipe}). "
                "Choose e.g. w8a8 or w4a4."
            )
    if options.unsigned is True and recipe.activation_bits == WIDEST:
        raise UsageError(
            f"unsigned=true needs activations of at most 7 bits, got {recipe.activation_bits} ({recipe}): TensorRT "
            "computes in int8, which ends at 127. Use unsigned=auto."
        )


def _require_other_sizes(model: nn.Module, spec: Specification) -> None:
    from dfq_plugins.quantization.dynamic_sizes import require_other_sizes  # noqa: PLC0415  (ONNX Runtime only for it)

    require_other_sizes(model, spec)


def _require_quantizable(prepared: nn.Module, model: nn.Module, backend: Backend, options: RangeOptions) -> None:
    layers = [(name, module) for name, module in quantized_modules(prepared) if hasattr(module, "weight_quantizer")]
    if not layers:
        named = (
            (name, backend.reason_for_float(module, pooling=options.pooling)) for name, module in model.named_modules()
        )
        reasons = (
            "; ".join(f"{name or 'the model'}: {reason}" for name, reason in named if reason) or "it has no layers"
        )
        raise ModelError(
            f"{backend.name} quantizes torch.nn convolutions and linear layers, but finds none in "
            f"{type(model).__name__} ({reasons}). Build the model from torch.nn.Conv1d to Conv3d and Linear."
        )
    for name, module in layers:
        if not module.weight.isfinite().all():
            raise ModelError(
                f"Weights must be finite, but the weight of {name!r} contains NaN or infinity. Load valid weights "
                "before quantizing."
            )


def _each_quantizer(module: Any, method: str) -> None:
    for quantizer in (module.input_quantizer, getattr(module, "weight_quantizer", None)):
        if quantizer is not None:
            getattr(quantizer, method)()


@contextmanager
def _collecting(prepared: nn.Module) -> Iterator[None]:
    """Within the block, make the input quantizers collect statistics from scratch, with the network in float."""
    quantizers = [module.input_quantizer for _, module in calibrated_inputs(prepared)]
    for _, module in quantized_modules(prepared):
        _each_quantizer(module, "disable_quant")
    for quantizer in quantizers:
        start_observing(quantizer)
    try:
        yield
    finally:
        for quantizer in quantizers:
            quantizer.disable_calib()


def _load_ranges(prepared: nn.Module, backend: Backend, options: RangeOptions, device: torch.device) -> None:
    calibrated = dict(calibrated_inputs(prepared))
    for name, module in quantized_modules(prepared):
        if name in calibrated and module.input_quantizer._calibrator.lowest == float("inf"):  # noqa: SLF001
            _each_quantizer(module, "disable")  # its forward never ran; its weights may be used directly
            continue
        if name in calibrated:
            load_activation_range(module.input_quantizer, options, device)
        if hasattr(module, "weight_quantizer"):
            load_weight_range(module, backend, options, device)
