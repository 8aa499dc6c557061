"""Quantizes parts of a network and leaves the steps around them in float: `quantize_parts`."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.utils import _pytree as pytree

from dfq_plugins.data.image_lists import as_image_lists, in_batches, in_lists
from dfq_plugins.errors import DataError, ModelError, UsageError
from dfq_plugins.host.accepted import accepted_spec
from dfq_plugins.host.broadcast import Broadcast
from dfq_plugins.host.plugin_info import attributed
from dfq_plugins.host.registry import get_registry
from dfq_plugins.inputs import leaves, run_network
from dfq_plugins.model_state import device_of, frozen_copy, preserve_global_state
from dfq_plugins.network.origin import warn_if_untrained
from dfq_plugins.network.parts import (
    PartInputs,
    PartNetwork,
    check_parts,
    known_parts,
    nesting_of,
    part_specification,
    survey,
)
from dfq_plugins.network.trial import check_finite, takes_list
from dfq_plugins.quality.fidelity import decibels
from dfq_plugins.quantization.artifacts import export_all, require_folder
from dfq_plugins.quantization.guard import warn_of_part
from dfq_plugins.quantization.manifest import about_network, check_artifact_folder, write_manifest
from dfq_plugins.quantization.quantized_part import QuantizedPart, Variant
from dfq_plugins.quantization.result import QuantizationRun
from dfq_plugins.types import Coverage, ProgressEvent, Recipe, as_specification

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch import nn

    from dfq_plugins.data.calibration_data import CalibrationData
    from dfq_plugins.host.registry import Registry
    from dfq_plugins.network.parts import Calls
    from dfq_plugins.types import Artifact, Calibrator, GivenSpec, RejectedArtifact, Specification

logger = logging.getLogger(__name__)

NetworkCall = Literal["batch", "list"]
"""How the whole network takes its data: as a batch, or as a list of samples."""


@dataclass(frozen=True)
class PartAgreement:
    """How closely a quantized part agrees with the float one, on the part's own inputs.

    Args:
        name: name of the part.
        shapes: shape of one sample of each of its inputs.
        decibels: smallest signal-to-noise ratio among its outputs, in dB.
        samples: number of samples compared.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    decibels: float
    samples: int


@dataclass(frozen=True)
class PartsRun(QuantizationRun):
    """A network with quantized parts.

    `model` is a copy of the float network with quantized parts in it, `coverage` uses the names of layers in the whole
    network, and `agreement` is NaN.

    Args:
        parts: each part that was quantized, and each set of shapes that it is called with.
        left_out: parts known by their names that stay in float, with the reason.
    """

    parts: tuple[PartAgreement, ...] = field(default=(), kw_only=True)
    left_out: tuple[tuple[str, str], ...] = field(default=(), kw_only=True)


def quantize_parts(
    model: nn.Module,
    data: CalibrationData,
    parts: Sequence[str] | None = None,
    *,
    calibrator: str,
    recipe: str | Recipe = "w8a8",
    spec: GivenSpec | None = None,
    call: NetworkCall | None = None,
    options: Mapping[str, object] | object | None = None,
    output: Path | str | None = None,
    listeners: Iterable[Callable[[ProgressEvent], None]] = (),
    registry: Registry | None = None,
) -> PartsRun:
    """Quantize parts of a network, such as a detector's backbone and heads, and leave everything else as it is.

    The float network runs on the data, each part is calibrated on what it is given there, and takes its place in a copy
    of the network. A part may take and return any nesting of tensors. It is quantized for the shapes that it is given;
    for other shapes, such as those of another image size, the network raises a `ModelError`.

    Args:
        model: trained float network; not changed.
        data: what the network takes: lists of images or (images, targets) pairs, as detection loaders yield them, or
            any data that `run_quantization` takes.
        parts: names of submodules. None finds those of detectors by their names: backbone, neck, head, and the heads in
            `rpn` and `roi_heads`.
        calibrator: name of the framework's calibrator.
        recipe: bit widths.
        spec: specification of the network's own inputs, if it takes several; see `NetworkSpec`.
        call: whether the network takes a batch or a list of samples; None finds out.
        options: settings of the calibrator; names of layers are those in the whole network.
        output: folder for the artifacts: those of each part are in a subfolder with its name, and for a part that is
            called with several shapes, in a numbered one inside that. None exports nothing.
        listeners: called with every `ProgressEvent`.
        registry: registry to look up plugins in; None uses the installed plugins.

    Raises:
        UsageError: the recipe, an option or the name of a part is invalid, or no part is known by its name.
        PluginError: the calibrator is unknown, or its framework is not installed.
        ModelError: the framework cannot trace or quantize a part, a part is not called, is given something else than
            tensors, or is given other shapes in each run.
        DataError: the data is empty, or the output folder is a file.

    A failing export raises nothing: it is listed in `PartsRun.rejected`.
    """
    if output is not None:
        require_folder(Path(output))
    registry = registry or get_registry()
    info = registry.find("calibrator", calibrator)
    recipe = Recipe.parse(recipe) if isinstance(recipe, str) else recipe
    framework = registry.create("calibrator", calibrator, options)
    broadcast = Broadcast(listeners, registry)
    with preserve_global_state(seed=0):
        network = frozen_copy(model)
        check_finite(network)
        identity = about_network(network)
        if output is not None:
            check_artifact_folder(Path(output), identity)
        warn_if_untrained(network)
        names = known_parts(network) if parts is None else tuple(parts)
        check_parts(network, names)
        runs = _runs(network, data, spec, call)
        calls = survey(network, names, runs)
        left_out = tuple((name, reason) for name in names if (reason := _unused(calls[name])))
        if left_out and parts is not None:
            raise ModelError(f"The part {left_out[0][0]!r} {left_out[0][1]}")
        if parts is None:
            _say(network, names, left_out)
        floats = [part for name in names for part in _floats(network, name, calls[name], runs)]
        done = []
        with attributed(info):
            prepared = [_prepare(framework, part, recipe, info) for part in floats]  # all, before any is calibrated
            for part, module in zip(floats, prepared, strict=True):
                done.append(_convert(framework, part, module, output))
                warn_of_part(part.name, done[-1].agreement.decibels, recipe, calibrator)
                broadcast(ProgressEvent("calibrate", len(done), len(floats)))
        for name in dict.fromkeys(part.name for part in floats):
            _replace(network, name, [found.variant for found in done if found.agreement.name == name])
    run = PartsRun(
        model=network,
        calibrator=calibrator,
        recipe=recipe,
        coverage=Coverage(
            tuple(tensor for found in done for tensor in found.coverage.quantized),
            tuple(layer for found in done for layer in found.coverage.unquantized),
        ),
        artifacts=tuple(artifact for found in done for artifact in found.artifacts),
        agreement=math.nan,
        rejected=tuple(artifact for found in done for artifact in found.rejected),
        parts=tuple(found.agreement for found in done),
        left_out=left_out,
    )
    if output is not None:
        chosen = registry.options("calibrator", calibrator, options)
        write_manifest(Path(output), run, identity, data={}, options=chosen, spec=as_specification(spec))
    return run


class _FloatPart:
    """A float part for one form of its calls.

    Args:
        inputs: the inputs of these calls.
        folder: subfolder for its artifacts.
    """

    def __init__(self, inputs: PartInputs, folder: str) -> None:
        self.name, self.form, self.spec = inputs.name, inputs.form, inputs.spec
        self.network = PartNetwork(inputs.name, inputs.network.get_submodule(inputs.name), inputs.form.nesting).eval()
        self.inputs, self.folder = inputs, folder


def _floats(
    network: nn.Module, name: str, calls: Calls, runs: Sequence[Callable[[nn.Module], Any]]
) -> Iterator[_FloatPart]:
    """Yield a part for each form of its calls."""
    part = network.get_submodule(name)
    for index, form in enumerate(calls.forms):
        inputs = PartInputs(network, name, form, part_specification(part, form), runs, calls.counts)
        yield _FloatPart(inputs, f"{name}/{index}" if len(calls.forms) > 1 else name)


@dataclass(frozen=True)
class _QuantizedPart:
    """A quantized part for one form of its calls, and what the framework says of it."""

    variant: Variant
    coverage: Coverage
    agreement: PartAgreement
    artifacts: tuple[Artifact, ...]
    rejected: tuple[RejectedArtifact, ...]


def _prepare(framework: Calibrator, part: _FloatPart, recipe: Recipe, info: object) -> nn.Module:
    with _naming(part.name):
        accepted = accepted_spec(framework, info, part.spec)
        return framework.prepare(part.network, accepted, recipe, training=False)


@torch.no_grad()
def _convert(framework: Calibrator, part: _FloatPart, prepared: nn.Module, output: Path | str | None) -> _QuantizedPart:
    with _naming(part.name):
        framework.calibrate(prepared, part.inputs)
        converted = framework.convert(prepared)
        coverage = _in_whole(framework.describe(converted), part.name)
    sample = next(iter(part.inputs))
    args, kwargs = part.form.nesting.filled(leaves(sample))
    result, expected = nesting_of(part.network.get_submodule(part.name)(*args, **kwargs))
    variant = Variant(part.form, part.spec, result, converted)
    found = variant.run(leaves(sample))
    worst = min(_ratio(one.float(), other.float()) for one, other in zip(expected, found, strict=True))
    agreement = PartAgreement(part.name, part.form.shapes, worst, len(leaves(sample)[0]))
    artifacts, rejected = (
        ((), ()) if output is None else export_all(framework, converted, part.spec, Path(output) / part.folder)  # type: ignore[arg-type]
    )
    return _QuantizedPart(variant, coverage, agreement, artifacts, rejected)


def _in_whole(coverage: Coverage, part: str) -> Coverage:
    """Return a part's coverage, naming the part where a name is not that of a module in it."""

    def named(name: str) -> str:
        return name if name == part or name.startswith(f"{part}.") else f"{part}: {name}"

    return Coverage(
        tuple(replace(tensor, name=named(tensor.name)) for tensor in coverage.quantized),
        tuple((named(name), reason) for name, reason in coverage.unquantized),
    )


def _ratio(expected: torch.Tensor, found: torch.Tensor) -> float:
    return decibels(float(expected.double().square().sum()), float((expected - found).double().square().sum()))


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Name the part in an error of the framework."""
    try:
        yield
    except (ModelError, UsageError, DataError) as error:
        raise type(error)(f"The part {name!r} cannot be quantized: {error}") from error


def _replace(network: nn.Module, name: str, variants: Sequence[Variant]) -> None:
    """Put quantized variants in the place of a part, wherever the network holds it; in place."""
    part = network.get_submodule(name)
    quantized = QuantizedPart(name, part, variants)
    for module in list(network.modules()):
        for attribute, child in module.named_children():
            if child is part:
                setattr(module, attribute, quantized)


def _unused(calls: Calls) -> str:
    """Return why a part cannot be calibrated; empty if it can."""
    if not any(calls.counts):
        return "is not called in evaluation mode, or not as a module. Name the modules that are."
    if not calls.samples:
        return (
            "gets no samples on this data, such as boxes, which were not found. Give more data, or lower the threshold "
            "of the stage before it."
        )
    return ""


def _say(network: nn.Module, names: Sequence[str], left_out: Sequence[tuple[str, str]]) -> None:
    reasons = dict(left_out)
    chosen = [name for name in names if name not in reasons]
    if not chosen:
        raise ModelError(f"No part of {type(network).__name__} can be quantized: {_listed(left_out)}")
    logger.info("Quantizing these parts of %s: %s.", type(network).__name__, ", ".join(chosen))
    if left_out:
        logger.warning("These parts of %s stay in float: %s", type(network).__name__, _listed(left_out))


def _listed(left_out: Sequence[tuple[str, str]]) -> str:
    return " ".join(f"{name!r} {reason}" for name, reason in left_out)


def _runs(
    network: nn.Module, data: Any, spec: GivenSpec | None, call: NetworkCall | None
) -> list[Callable[[nn.Module], Any]]:
    """Return a function for each batch of the data that runs a network on it.

    Raises:
        UsageError: it is not calibration data.
        DataError: it is empty, or does not hold floating-point numbers.
    """
    device, known = device_of(network), as_specification(spec)
    data = list(data) if isinstance(data, Iterator) else data  # it is looked at twice
    lists = None if call == "batch" else as_image_lists(data, single=call == "list")
    batches: Sequence[Any] = lists if lists is not None else in_batches(data, spec)
    if lists is None and _as_lists(network, batches[0], call):
        batches = in_lists(batches)
    return [partial(_run, inputs=batch, spec=known, device=device) for batch in batches]


def _as_lists(network: nn.Module, batch: Any, call: NetworkCall | None) -> bool:
    """Return whether a network takes the samples of a batch as a list."""
    if not isinstance(batch, torch.Tensor):
        return False
    return call == "list" or (call is None and takes_list(network, batch[:1].to(device_of(network))))


def _run(network: nn.Module, inputs: Any, spec: Specification | None, device: torch.device) -> Any:
    """Run a network on copies of its inputs: a list of images, or a batch."""
    copies = pytree.tree_map(lambda tensor: tensor.to(device, copy=True), inputs)
    return network(copies) if isinstance(copies, list) else run_network(network, copies, spec)
