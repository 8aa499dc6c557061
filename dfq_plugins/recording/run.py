"""Records a model: one pass over the data, then the statistics, then the file."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from dfq_plugins.errors import DataError, UsageError
from dfq_plugins.host.broadcast import Broadcast
from dfq_plugins.host.options import parse_options
from dfq_plugins.host.registry import get_registry
from dfq_plugins.model_state import device_of, frozen_copy, preserve_global_state
from dfq_plugins.network.digest import model_digest
from dfq_plugins.network.origin import warn_if_untrained
from dfq_plugins.network.specification import require_classes, resolve_spec
from dfq_plugins.network.trial import check_finite
from dfq_plugins.recording.capacity import require_memory
from dfq_plugins.recording.data import count_samples, labeled_batches
from dfq_plugins.recording.disclosure import disclosures
from dfq_plugins.recording.filters import draw_filter
from dfq_plugins.recording.info import NoiseRecord, RecordInfo
from dfq_plugins.recording.moments import LayerMoments
from dfq_plugins.recording.noise import add_noise, clipped, noise_multiplier, sensitivity
from dfq_plugins.recording.options import RecordingOptions
from dfq_plugins.recording.record import require_free, write_record
from dfq_plugins.recording.summary import summarize
from dfq_plugins.recording.units import UnitReader, find_layers, probe_inputs
from dfq_plugins.storage.versions import library_versions
from dfq_plugins.types import InputSpec, ProgressEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch import Tensor, nn

    from dfq_plugins.host.registry import Registry
    from dfq_plugins.recording.data import RecordingData
    from dfq_plugins.recording.info import Layer
    from dfq_plugins.recording.record import ActivationRecord
    from dfq_plugins.types import GivenSpec

logger = logging.getLogger(__name__)


def record(
    model: nn.Module,
    data: RecordingData,
    spec: GivenSpec | None = None,
    *,
    output: Path | str,
    options: Mapping[str, object] | RecordingOptions | None = None,
    listeners: Iterable[Callable[[ProgressEvent], None]] = (),
    registry: Registry | None = None,
) -> ActivationRecord:
    """Record the activations of a model on its owner's data, so that inputs can be rebuilt later without the data.

    Data is read once, batch by batch; memory depends on the number of units and classes, not on the number of samples.

    Source: Lopes, Fenu and Starner 2017.

    Args:
        model: trained classifier, with or without BatchNorm; it is not modified.
        data: a tensor `(samples, *shape)`, a pair of inputs and labels, or an iterable of batches: tensors, `Batch`
            records or (inputs, labels) pairs. Without labels, the model predicts the classes.
        spec: the input specification; None infers it from the model as far as possible.
        output: folder of the record; it must be new or empty.
        options: options, as a mapping or as a `RecordingOptions` record.
        listeners: called with every `ProgressEvent`.
        registry: plugins whose listeners are called; None uses the installed ones.

    Returns:
        The record; its generators take the folder as their option `record`.

    Raises:
        UsageError: an option is invalid, the model does not call a layer, or the statistics do not fit into memory.
        ModelError: the model is not a classifier, contains NaN, or does not accept the shape.
        DataError: there are no samples, a class has none, samples or labels do not match the network, or the folder is
            in use.
    """
    options = parse_options(RecordingOptions, options, owner="the recording")
    require_free(Path(output))
    registry = registry or get_registry()
    with preserve_global_state(seed=0), torch.no_grad():
        network = frozen_copy(model)
        check_finite(network)
        warn_if_untrained(network)
        known = resolve_spec(network, single_spec(spec), registry)
        require_classes(network, known, "A record describes the activations of each class, so it needs a classifier.")
        recording = Recording(network, single_spec(known), options)
        recording.read(data, Broadcast(listeners, registry))
        info, tensors = recording.finish()
        return write_record(Path(output), info, tensors)


def single_spec(spec: GivenSpec | None) -> Any:
    """Return the specification of a network with one input.

    Raises:
        UsageError: the network has several inputs, from which no input could be rebuilt by class.
    """
    if spec is None or isinstance(spec, InputSpec):
        return spec
    raise UsageError(
        "Activation records are made of networks with one input, but this specification has several. Use the generator "
        "'bns', which takes several, or wrap the network in a module that takes one of them and fixes the others."
    )


class Recording:
    """One pass over the data.

    Args:
        network: frozen network.
        spec: its input specification, with the number of classes.
        options: what to record.

    Raises:
        UsageError: the network does not call a layer, or the statistics do not fit into memory.
    """

    def __init__(self, network: nn.Module, spec: InputSpec, options: RecordingOptions) -> None:
        self.network, self.spec, self.options = network, spec, options
        self.layers = _layers(network, spec, options)
        classes = spec.num_classes or 0
        require_memory(self.layers, classes, options)
        sizes = [layer.units for layer in self.layers]
        self.moments = LayerMoments(sizes, classes, joint=options.spectral)
        rng = torch.Generator().manual_seed(options.seed)
        self.filters = [
            draw_filter(network, spec, self.layers, options.units, rng) for _ in range(options.dropout_filters)
        ]
        kept = [[self._num_kept(layer, masks) for layer in self.layers] for masks in self.filters]
        self.filtered = [LayerMoments(sizes, classes, joint=False) for sizes in kept]
        self.labels: Literal["given", "teacher"] = "given"
        self._noise = self._planned_noise()

    def read(self, data: RecordingData, report: Callable[[ProgressEvent], None]) -> None:
        """Read all data once.

        Raises:
            DataError: there are no samples, a class has none, or samples or labels do not match the network.
        """
        done, total, device = 0, count_samples(data), device_of(self.network)
        for batch, given in labeled_batches(data, self.spec, self.options.labels):
            inputs = batch.to(device)
            units = self._units(inputs, {})
            self.labels = "teacher" if given is None else "given"
            labels = units[-1].argmax(1).cpu() if given is None else given.cpu()
            self.moments.add(self._bounded(units), labels)
            for masks, moments in zip(self.filters, self.filtered, strict=True):
                moments.add(self._bounded(self._units(inputs, masks)), labels)
            done += len(inputs)
            report(ProgressEvent("record", done, max(done, total)))
        self._require_every_class(done)

    def finish(self) -> tuple[RecordInfo, dict[str, Tensor]]:
        """Return the description and the tensors of the record."""
        parts = [self.moments, *self.filtered]
        if self._noise is not None:
            add_noise(parts, self._noise)
        tensors, jitter = summarize(self.moments, self.options)
        for number, (moments, masks) in enumerate(zip(self.filtered, self.filters, strict=True)):
            more, worst = summarize(moments, self.options, dropout=number)
            tensors |= more | {f"dropout.{number}.kept.{name}": mask.to(torch.uint8) for name, mask in masks.items()}
            jitter |= worst
        if jitter:
            logger.warning("%s", _jitter_message(jitter))
        return self._info(jitter), tensors

    def _units(self, inputs: Tensor, masks: Mapping[str, Tensor]) -> list[Tensor]:
        names = [layer.name for layer in self.layers[:-1]]
        settings = {"units": self.options.units, "temperature": self.options.temperature}
        moved = {name: mask.to(inputs.device) for name, mask in masks.items()}
        with UnitReader(self.network, names, masks=moved, **settings) as reader:  # type: ignore[arg-type]
            return reader.read(inputs)

    def _bounded(self, units: list[Tensor]) -> list[Tensor]:
        return units if self._noise is None else clipped(units, self._noise.clip_norm)

    def _num_kept(self, layer: Layer, masks: Mapping[str, Tensor]) -> int:
        return int(masks[layer.name].sum()) if layer.name in masks else layer.units

    def _planned_noise(self) -> NoiseRecord | None:
        options = self.options
        if options.epsilon is None:
            return None
        multiplier = noise_multiplier(options.epsilon, options.delta, sensitivity(1 + len(self.filters)))
        return NoiseRecord(options.epsilon, options.delta, options.clip_norm or self._default_norm(), multiplier)

    def _default_norm(self) -> float:
        """Return the median norm of the units for noise inputs, which does not depend on the data."""
        units = torch.cat(self._units(probe_inputs(self.network, self.spec), {}), 1)
        return float(units.norm(dim=1).median())

    def _require_every_class(self, samples: int) -> None:
        if not samples:
            raise DataError("A recording needs at least one sample per class, but there are no samples. Provide data.")
        absent = torch.nonzero(self.moments.counts == 0).flatten().tolist()
        if absent:
            kind = "labels" if self.labels == "given" else "predictions"
            raise DataError(
                f"Every class needs at least one sample, but by the {kind} of {samples} samples, classes "
                f"{_shorten(absent)} have none. Provide data of every class."
            )

    def _info(self, jitter: dict[str, float]) -> RecordInfo:
        options = self.options
        info = RecordInfo(
            model_digest=model_digest(self.network),
            input_spec=self.spec,
            class_counts=tuple(round(count) for count in self.moments.counts.tolist()),
            labels=self.labels,
            statistics=options.statistics,
            layers=self.layers,
            units=options.units,
            temperature=options.temperature,
            graph=options.graph,
            coefficients=options.coefficients,
            dropout_filters=options.dropout_filters,
            jitter=jitter,
            noise=self._noise,
            reveals=(),
            sha256="",
            versions=library_versions(),
        )
        return disclosures(info)


def _layers(network: nn.Module, spec: InputSpec, options: RecordingOptions) -> tuple[Layer, ...]:
    """Return the layers that the statistics need: only the output, unless more are requested.

    Raises:
        UsageError: spectral coefficients are requested, but the output is the only layer.
    """
    layers = find_layers(network, spec, options.layers or None, options.units)
    if options.spectral and len(layers) == 1:
        raise UsageError(
            f"Spectral coefficients need a graph between layers, but {type(network).__name__} has no recorded layer "
            "except its output. Record only the statistic top, or list layers."
        )
    return layers if options.spectral or "all" in options.statistics else layers[-1:]


def _shorten(classes: Sequence[int], shown: int = 10) -> str:
    more = f" and {len(classes) - shown} more" if len(classes) > shown else ""
    return ", ".join(map(str, classes[:shown])) + more


def _jitter_message(jitter: Mapping[str, float]) -> str:
    largest = ", ".join(f"{name} {value:.2g}" for name, value in jitter.items())
    return (
        "Some covariances are singular (units that never vary, or fewer samples in a class than units), so a small "
        f"variance was added to all their units to factor them, at most: {largest}."
    )
