"""Post-training quantization on given data inside one framework: `quantize` and `run_quantization`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dfq_plugins.data.calibration_data import as_calibration_data
from dfq_plugins.data.dataset import SyntheticDataset
from dfq_plugins.errors import UsageError
from dfq_plugins.host.accepted import accepted_spec
from dfq_plugins.host.broadcast import Broadcast
from dfq_plugins.host.plugin_info import attributed
from dfq_plugins.host.registry import get_registry
from dfq_plugins.model_state import frozen_copy, preserve_global_state
from dfq_plugins.network.agreement import class_agreement, output_agreement
from dfq_plugins.network.file_network import FileNetwork
from dfq_plugins.network.normalization import (
    clamped_share,
    impossible,
    mean_of,
    outside,
    unlikely,
    warn_of_normalization,
)
from dfq_plugins.network.origin import check_origin, warn_if_untrained
from dfq_plugins.network.specification import resolve_spec
from dfq_plugins.network.trial import check_finite, require_numbers
from dfq_plugins.quantization.artifacts import export_all, require_folder
from dfq_plugins.quantization.guard import warn_of_outputs
from dfq_plugins.quantization.input_step import warn_of_input_step
from dfq_plugins.quantization.manifest import about_data, about_network, check_artifact_folder, write_manifest
from dfq_plugins.quantization.reconstruction_step import ReconstructionStep, reconstruction_options
from dfq_plugins.quantization.result import QuantizationRun
from dfq_plugins.storage.locks import work_folder
from dfq_plugins.types import CalibratorEntry, ProgressEvent, Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import nn

    from dfq_plugins.data.calibration_data import CalibrationData, InputBatches
    from dfq_plugins.host.plugin_info import PluginInfo
    from dfq_plugins.host.registry import Registry
    from dfq_plugins.reconstruction.options import ReconstructionOptions
    from dfq_plugins.types import GivenSpec, Specification

AGREEMENT_SAMPLES = 512


def quantize(
    model: nn.Module | Path | str,
    data: CalibrationData,
    *,
    calibrator: str,
    recipe: str | Recipe = "w8a8",
    spec: GivenSpec | None = None,
    options: Mapping[str, object] | object | None = None,
    reconstruct: bool | Mapping[str, object] | ReconstructionOptions = False,
    output: Path | str | None = None,
    allow_other_network: bool = False,
    work: Path | str | None = None,
    listeners: Iterable[Callable[[ProgressEvent], None]] = (),
    registry: Registry | None = None,
) -> nn.Module:
    """Quantize a model on the given data inside one framework, and return the framework's native model.

    Takes the same arguments and raises the same errors as `run_quantization`, which also reports what was quantized
    and exported.
    """
    return run_quantization(
        model,
        data,
        calibrator=calibrator,
        recipe=recipe,
        spec=spec,
        options=options,
        reconstruct=reconstruct,
        output=output,
        allow_other_network=allow_other_network,
        work=work,
        listeners=listeners,
        registry=registry,
    ).model


def run_quantization(
    model: nn.Module | Path | str,
    data: CalibrationData,
    *,
    calibrator: str,
    recipe: str | Recipe = "w8a8",
    spec: GivenSpec | None = None,
    options: Mapping[str, object] | object | None = None,
    reconstruct: bool | Mapping[str, object] | ReconstructionOptions = False,
    output: Path | str | None = None,
    allow_other_network: bool = False,
    work: Path | str | None = None,
    listeners: Iterable[Callable[[ProgressEvent], None]] = (),
    registry: Registry | None = None,
) -> QuantizationRun:
    """Quantize a model after training, with one framework's observers, kernels and export.

    Args:
        model: trained float network, not changed; or the path of an ONNX file, for a calibrator that takes it.
        data: a `SyntheticDataset`, a tensor `(samples, *shape)`, or an iterable of such tensors, of `Batch` records or
            of (inputs, target) pairs. For a network with several inputs, a dictionary of tensors by name stands for
            each tensor.
        calibrator: name of the framework's calibrator: "torch-ao", "pytorch-quantization", "brevitas", "onnxruntime",
            or a plugin's.
        recipe: bit widths, such as "w8a8" or "w4a4".
        spec: input specification; a synthetic data set provides its own. Its valid range becomes the range of the
            input quantizer. For several inputs, a `NetworkSpec` or a mapping of `InputSpec` by name.
        options: settings of the calibrator, as a mapping or as its options record.
        reconstruct: whether roundings and scales are learned after calibration, block by block, or the settings of
            that as a mapping or as `ReconstructionOptions`. Pays off below 8 bits.
        output: folder for the artifacts; None exports nothing.
        allow_other_network: only warn of data that was synthesized from another network, instead of rejecting it.
        work: folder for reconstructed blocks: repeating the call resumes an interrupted run. None stores none.
        listeners: called with every `ProgressEvent`.
        registry: registry to look up plugins in; None uses the installed plugins.

    Raises:
        UsageError: the recipe, an option or a name is invalid, the calibrator does not take ONNX files, or the
            framework cannot reconstruct.
        PluginError: the calibrator is unknown, or its framework is not installed.
        ModelError: the framework cannot trace or quantize the model, or the ONNX file cannot be used.
        DataError: the data is empty, has the wrong shape or was made from another network, the output folder is a file,
            or the work folder belongs to another run.

    A failing export raises nothing: it is listed in `QuantizationRun.rejected`.
    """
    if output is not None:
        require_folder(Path(output))
    registry = registry or get_registry()
    info = registry.find("calibrator", calibrator)
    recipe = Recipe.parse(recipe) if isinstance(recipe, str) else recipe
    network = _network(model, info, registry)
    framework = registry.create("calibrator", calibrator, options)
    chosen = registry.options("calibrator", calibrator, options)
    settings = reconstruction_options(reconstruct)
    broadcast = Broadcast(listeners, registry)
    with preserve_global_state(seed=0), work_folder(None if settings is None else work) as folder:
        original = frozen_copy(network)
        check_finite(original)
        identity = about_network(original)
        if output is not None:
            check_artifact_folder(Path(output), identity)
        check_origin(data, original, allow_other_network=allow_other_network)
        warn_if_untrained(original)
        samples = as_calibration_data(data, spec)
        known = resolve_spec(original, samples.spec, registry, shape=samples.shape)
        samples.check(known)
        warn_of_data(data, samples, known)
        require_numbers(original, next(iter(samples)), known)
        warn_of_input_step(original, next(iter(samples)), known, recipe)
        accepted = accepted_spec(framework, info, known)
        with attributed(info):
            prepared = framework.prepare(original, accepted, recipe, training=False)
            step = ReconstructionStep(framework, prepared, settings)
            with torch.no_grad():
                framework.calibrate(prepared, samples.observed(lambda done: _calibrated(broadcast, done, len(samples))))
            about = [calibrator, str(recipe), asdict(chosen)]
            blocks = step.run(samples, accepted, broadcast, folder, about)
            converted = framework.convert(prepared)
            coverage = framework.describe(converted)
            classes = known.num_classes
            found = output_agreement(original, converted, samples, AGREEMENT_SAMPLES, classes, known)
            warn_of_outputs(found, recipe, calibrator)
            artifacts, rejected = (
                ((), ()) if output is None else export_all(framework, converted, accepted, Path(output))
            )
        run = QuantizationRun(
            model=converted,
            calibrator=calibrator,
            recipe=recipe,
            coverage=coverage,
            artifacts=artifacts,
            agreement=class_agreement(found),
            output_agreement=found,
            rejected=rejected,
            reconstruction=blocks,
        )
        if output is not None:
            about_samples = about_data(data, samples, len(samples))
            write_manifest(Path(output), run, identity, data=about_samples, options=chosen, spec=known)
    return run


def warn_of_data(data: CalibrationData, samples: InputBatches, spec: Specification) -> None:
    """Warn of a normalization that cannot be that of the network."""
    if isinstance(data, SyntheticDataset):
        likely = unlikely(clamped_share(samples, spec), mean_of(data.manifest.divergence))
    else:
        likely = outside(samples, spec)
    warn_of_normalization(impossible(spec), likely)


def _network(model: nn.Module | Path | str, info: PluginInfo, registry: Registry) -> nn.Module:
    """Return the network, or the ONNX file as one.

    Raises:
        UsageError: it is a file, and the calibrator quantizes torch networks; the message names those that take files.
        ModelError: the file cannot be used.
    """
    if isinstance(model, torch.nn.Module) and not isinstance(model, FileNetwork):
        return model
    if not (isinstance(info.entry, CalibratorEntry) and info.entry.onnx_files):
        entries = [other.entry for other in registry.calibrators.values()]
        takers = [repr(entry.name) for entry in entries if isinstance(entry, CalibratorEntry) and entry.onnx_files]
        raise UsageError(
            f"The calibrator {info.entry.name!r} takes torch networks, got the file "
            f"{model.name if isinstance(model, FileNetwork) else model}. Use the calibrator "
            f"{' or '.join(takers) or 'of a plugin'} for an ONNX file, or give the torch network that it was exported "
            "from."
        )
    from dfq_plugins.quantization.onnx_file import as_network  # noqa: PLC0415  imports ONNX Runtime

    return as_network(model)


def _calibrated(broadcast: Broadcast, done: int, total: int) -> None:
    broadcast(ProgressEvent("calibrate", done, total))
