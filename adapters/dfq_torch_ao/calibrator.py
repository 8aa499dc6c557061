"""The calibrator "torch-ao": `prepare_fx`, observe, `convert_fx`."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.ao.quantization import ObserverBase
from torch.ao.quantization.fx.custom_config import PrepareCustomConfig
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
from torch.fx import GraphModule

from dfq_plugins.errors import DataError, ModelError, UsageError
from dfq_torch_ao.clipping import observe_clipped_values
from dfq_torch_ao.coverage import describe_coverage
from dfq_torch_ao.engines import active_engine, resolve_engine
from dfq_torch_ao.export import export_torchscript
from dfq_torch_ao.input_range import fix_input_range
from dfq_torch_ao.options import TorchAoOptions
from dfq_torch_ao.qconfig import STORAGE_BITS, make_qconfig_mapping, match_histogram_levels
from dfq_torch_ao.quiet import framework_notices_silenced
from dfq_torch_ao.saturation import saturate_activations
from dfq_torch_ao.tensor_formats import is_quantized_module, is_quantized_operation, record_formats
from dfq_torch_ao.tracing import preparation_error

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from torch import nn

    from dfq_plugins.types import Artifact, Coverage, InputSpec, Recipe

_RUN_KEY = "dfq_torch_ao"


@dataclass(frozen=True)
class _Run:
    """What `prepare` was told, kept in the graph module's `meta` for the later steps."""

    spec: InputSpec
    recipe: Recipe
    engine: str


class TorchAoCalibrator:
    """Calibrates a model with torch.ao's observers and converts it to torch.ao's int8 modules.

    Every layer that torch.ao has a kernel for is quantized, the first and the last included: activations to unsigned
    integers per tensor, weights symmetrically per output channel. Below 8 bits the values keep to fewer levels inside
    int8 storage. The weights are packed for one engine; the process's engine is switched only while packing and
    checking, and put back.
    """

    def __init__(self, options: TorchAoOptions | None = None) -> None:
        self.options = options or TorchAoOptions()

    def prepare(self, model: nn.Module, spec: InputSpec, recipe: Recipe, *, training: bool = False) -> GraphModule:
        """Return a copy of `model`, traced, with BatchNorm folded and observers inserted.

        Where the specification knows the range of the input, the input's quantizer takes it, whatever the data holds.

        Raises:
            UsageError: the recipe, the engine or `training` is not supported.
            ModelError: FX cannot trace the model.
        """
        if training:
            raise UsageError("With torch-ao, fine-tuning is not available yet. Calibrate with training=False.")
        engine = resolve_engine(self.options.engine)
        private = copy.deepcopy(model).float().eval()
        exceptions = PrepareCustomConfig().set_non_traceable_module_names(list(self.options.non_traceable))
        with framework_notices_silenced():
            mapping = make_qconfig_mapping(recipe, self.options, engine)
            try:
                prepared = prepare_fx(private, mapping, (torch.zeros(1, *spec.shape),), exceptions)
            except Exception as error:
                raise preparation_error(private, error) from error
        match_histogram_levels(prepared)
        observe_clipped_values(prepared)
        if spec.extremes is not None:
            fix_input_range(prepared, spec.extremes)
        prepared.meta[_RUN_KEY] = _Run(spec, recipe, engine)
        return prepared

    def calibrate(self, prepared: nn.Module, batches: Iterable[torch.Tensor]) -> None:
        """Run every batch `(samples, *shape)` through the observers.

        Raises:
            UsageError: there is no batch, or one has the wrong shape.
            DataError: a batch holds NaN or infinity.
        """
        run = _run_of(prepared)
        device = next((parameter.device for parameter in prepared.parameters()), torch.device("cpu"))
        count = 0
        with torch.no_grad():
            for count, batch in enumerate(batches, start=1):  # noqa: B007 - counts for the check below
                prepared(_checked(batch, run.spec).to(device))
        if count == 0:
            raise UsageError("Calibration needs at least one batch, got none. Give inputs of shape (samples, *shape).")

    def convert(self, prepared: nn.Module) -> GraphModule:
        """Return torch.ao's int8 model with its weights packed for the engine; `prepared` stays as it is.

        Raises:
            UsageError: the model was not calibrated.
            ModelError: torch.ao or the engine cannot convert or run the model, or nothing in it was quantized.
        """
        run = _run_of(prepared)
        _require_calibrated(prepared)
        observed = copy.deepcopy(prepared).cpu()  # int8 kernels exist for the CPU only
        with framework_notices_silenced(), active_engine(run.engine):
            try:
                converted = convert_fx(observed)
                formats = record_formats(converted, run.spec)
            except (RuntimeError, NotImplementedError) as error:
                raise ModelError(
                    f"The engine {run.engine!r} of torch.ao cannot run this model in int8: {error}. "
                    "Try another engine, or keep the layer in float with the option non_traceable."
                ) from error
            _require_quantized(converted)
            if run.recipe.activation_bits < STORAGE_BITS:
                saturate_activations(converted, formats, 2**run.recipe.activation_bits - 1)
        converted.meta[_RUN_KEY] = run
        return converted

    def describe(self, converted: nn.Module) -> Coverage:
        """List the layers that compute in integers, and those that stay in float with the reason."""
        run = _run_of(converted)
        with active_engine(run.engine):
            formats = record_formats(converted, run.spec)
        return describe_coverage(converted, formats, run.recipe, self.options.non_traceable)

    def export(self, converted: nn.Module, spec: InputSpec, path: Path) -> tuple[Artifact, ...]:
        """Write the TorchScript program `model.torchscript.pt` into the folder `path`, load it and compare.

        Raises:
            ArtifactError: the loaded program does not agree with `converted`; the file is removed first.
            DataError: the folder cannot be written.
        """
        with framework_notices_silenced(), active_engine(_run_of(converted).engine):
            return (export_torchscript(converted, spec, path),)


def _run_of(module: nn.Module) -> _Run:
    run = getattr(module, "meta", {}).get(_RUN_KEY)
    if not isinstance(module, GraphModule) or not isinstance(run, _Run):
        raise UsageError(
            f"torch-ao works on models that its own prepare() returned, got {type(module).__name__}. "
            "Call prepare() first; for a model from your own prepare_fx, call convert_fx yourself."
        )
    return run


def _checked(batch: torch.Tensor, spec: InputSpec) -> torch.Tensor:
    if tuple(batch.shape[1:]) != spec.shape:
        expected = ", ".join(map(str, ("samples", *spec.shape)))
        raise UsageError(
            f"A calibration batch must have the shape ({expected}), got {tuple(batch.shape)}. "
            "Mend the data or the input specification."
        )
    if not torch.isfinite(batch).all():
        raise DataError("Calibration needs finite inputs, but a batch holds NaN or infinity. Synthesise the data anew.")
    return batch.float()


def _require_calibrated(prepared: nn.Module) -> None:
    for name, module in prepared.named_modules():
        lowest = getattr(module, "min_val", None)
        if name.startswith("activation_post_process") and isinstance(module, ObserverBase) and lowest is not None:
            if lowest.numel() == 0 or torch.isinf(lowest).any():
                raise UsageError(
                    f"Observers must see data before conversion, {name!r} saw none. Call calibrate() first."
                )


def _require_quantized(converted: GraphModule) -> None:
    """Refuse a model in which torch.ao quantized nothing, so that a float model is never passed off as int8."""
    if any(map(is_quantized_module, converted.modules())) or any(map(is_quantized_operation, converted.graph.nodes)):
        return
    kinds = sorted({type(module).__name__ for module in converted.children()})
    raise ModelError(
        f"torch.ao quantized no layer of this model (it holds: {', '.join(kinds) or 'no modules'}). "
        "It has int8 kernels for convolutions, linear layers, additions and the like."
    )
