"""ONNX Runtime's own calibration, fed one piece of the data at a time.

Its `quantize_static` keeps the outputs of all layers for all samples before it looks at them. Here its calibrators see
one piece after the other and keep only ranges and histograms, so memory does not grow with the number of samples.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from onnxruntime.quantization import CalibrationMethod
from onnxruntime.quantization.calibrate import HistogramCalibrater, HistogramCollector, TensorsData, create_calibrator

from dfq_onnxruntime.framework import quiet_tools
from dfq_plugins.errors import DataError, DfqWarning
from dfq_plugins.inputs import count, joined, leaves, rows, split
from dfq_plugins.quantization.onnx_runtime import exact_session

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from dfq_onnxruntime.options import OnnxRuntimeOptions
    from dfq_plugins.types import Inputs

    Array = np.ndarray[Any, Any]

METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
    "distribution": CalibrationMethod.Distribution,
}

HISTOGRAM_PIECE = 8
"""Samples in one piece for the methods with histograms, which get the outputs of all layers at once."""

BINS = {"entropy": 256, "percentile": 2048, "distribution": 2048}
"""Bins of a tensor's first histogram. Entropy compares one range per bin beyond its 128 levels: 128 leave it one."""

MOST_BINS = 16
"""A histogram grows to at most this multiple of its first bins; then its bins become wider."""


class OneBatch:
    """ONNX Runtime's data reader for one piece of the data.

    Args:
        feeds: the inputs by name.
    """

    def __init__(self, feeds: dict[str, Array]) -> None:
        self._feeds: dict[str, Array] | None = feeds

    def get_next(self) -> dict[str, Array] | None:
        """Return the inputs once, then None."""
        feeds, self._feeds = self._feeds, None
        return feeds


class BoundedCollector(HistogramCollector):  # type: ignore[misc]  # onnxruntime has no types
    """ONNX Runtime's histograms, with an end to their growth.

    A value far beyond the first batch would otherwise add one bin per old width: a million, if that batch was nearly 0.
    """

    def merge_histogram(
        self, old_histogram: Any, data_arr: Array, new_min: Any, new_max: Any, new_threshold: Any
    ) -> Any:
        """Add values to a histogram, after widening its bins where they would become too many."""
        hist, edges, lowest, highest, threshold = old_histogram
        if threshold and new_threshold / threshold * len(hist) > MOST_BINS * self.num_bins:
            hist, edges = _rebinned(hist, edges, self.num_bins, new_threshold)
            old_histogram = (hist, edges, lowest, highest, np.asarray(new_threshold, dtype=edges.dtype))
        return super().merge_histogram(old_histogram, data_arr, new_min, new_max, new_threshold)

    def collect_absolute_value(self, name_to_arr: Any) -> None:
        """Add absolute values to the histograms, after widening their bins where they would become too many."""
        for name, values in name_to_arr.items():
            if name in self.histogram_dict:
                hist, edges, *ends = self.histogram_dict[name]
                largest = max(float(np.abs(part).max(initial=0)) for part in values)
                if largest / (edges[1] - edges[0]) > MOST_BINS * self.num_bins:
                    hist, edges = _rebinned(hist, edges, self.num_bins, largest, lowest=0.0)
                    self.histogram_dict[name] = (hist, edges, *ends)
        super().collect_absolute_value(name_to_arr)


def _rebinned(
    hist: Array, edges: Array, bins: int, threshold: float, lowest: float | None = None
) -> tuple[Array, Array]:
    """Return a histogram over a wider range, with each old bin counted at its center."""
    centers = (edges[:-1] + edges[1:]) / 2
    ends = (-threshold if lowest is None else lowest, threshold)
    counts, wider = np.histogram(centers, bins, range=ends, weights=hist)
    return np.rint(counts).astype(hist.dtype), wider.astype(edges.dtype)


def activation_ranges(
    program: bytes,
    batches: Iterable[Inputs],
    names: Sequence[str],
    options: OnnxRuntimeOptions,
    operators: Sequence[str],
    *,
    batch_size: int | None,
) -> tuple[TensorsData, frozenset[str]]:
    """Return the range of every activation, and the activations that are infinite or NaN.

    Args:
        program: the float program.
        batches: calibration inputs `(samples, *shape)`; read once.
        names: names of the program's inputs, in the order of the batches' inputs.
        options: the method and its settings.
        operators: operators whose tensors are calibrated.
        batch_size: batch size that the program is fixed to; None if it takes any.

    Raises:
        DataError: the data does not fill one batch of a fixed size.
    """
    pieces = _pieces(batches, options, batch_size)
    with tempfile.TemporaryDirectory() as folder:
        calibrator, infinite = None, frozenset[str]()
        for piece in pieces:
            feeds = {name: tensor.numpy() for name, tensor in zip(names, leaves(piece), strict=True)}
            with quiet_tools():
                if calibrator is None:
                    infinite = _infinite(program, feeds, operators, Path(folder))
                    calibrator = _calibrator(program, options, operators, Path(folder))
                    _leave_out(calibrator, infinite)
                calibrator.collect_data(OneBatch(feeds))
        if calibrator is None:
            raise DataError(
                f"The network takes batches of {batch_size} samples, but the data holds fewer. Give at least "
                f"{batch_size}."
            )
        with quiet_tools():
            found = calibrator.compute_data()
    return found, infinite | _non_finite(found)


def _pieces(batches: Iterable[Inputs], options: OnnxRuntimeOptions, batch_size: int | None) -> Iterator[Inputs]:
    """Yield the data in pieces that weigh the same, where ONNX Runtime averages over them, and fit into memory."""
    if batch_size is not None:
        yield from _full_batches(batches, batch_size)
        return
    for batch in batches:
        if options.method != "minmax":
            yield from split(batch, HISTOGRAM_PIECE)
        elif options.moving_average:
            yield from split(batch, 1)  # a short last batch would weigh as much as a full one
        else:
            yield batch


def _full_batches(batches: Iterable[Inputs], size: int) -> Iterator[Inputs]:
    """Yield batches of exactly one size; samples that do not fill the last one are left out, with a warning."""
    rest: Inputs | None = None
    used = 0
    for batch in batches:
        rest = batch if rest is None else joined([rest, batch])
        while count(rest) >= size:
            yield rows(rest, slice(size))
            used += size
            rest = rows(rest, slice(size, None))
    if used and rest is not None and count(rest):
        warnings.warn(
            f"The network takes batches of exactly {size}: the last {count(rest)} of {used + count(rest)} samples were "
            f"not calibrated on. Give a multiple of {size}.",
            DfqWarning,
            stacklevel=2,
        )


def _calibrator(program: bytes, options: OnnxRuntimeOptions, operators: Sequence[str], folder: Path) -> Any:
    """Return ONNX Runtime's calibrator, with a session on as many threads as torch has."""
    source, augmented = folder / "float.onnx", folder / f"{options.method}.onnx"
    source.write_bytes(program)
    bins = options.bins or BINS.get(options.method, 0)
    symmetric = {"symmetric": True} if options.symmetric else {}
    settings = {
        "minmax": {
            **symmetric,
            "moving_average": options.moving_average,
            "averaging_constant": options.averaging_constant,
        },
        "entropy": {**symmetric, "num_bins": bins},
        "percentile": {"symmetric": options.symmetric, "percentile": options.percentile, "num_bins": bins},
        "distribution": {"num_bins": max(bins, 512)},
    }[options.method]
    calibrator = create_calibrator(
        source,
        list(operators),
        augmented_model_path=str(augmented),
        calibrate_method=METHODS[options.method],
        extra_options=settings,
    )
    calibrator.infer_session = exact_session(augmented)
    if isinstance(calibrator, HistogramCalibrater):
        calibrator.collector = BoundedCollector(
            calibrator.method,
            calibrator.symmetric,
            calibrator.num_bins,
            calibrator.num_quantized_bins,
            calibrator.percentile,
            calibrator.scenario,
        )
    return calibrator


def _infinite(program: bytes, feeds: dict[str, Array], operators: Sequence[str], folder: Path) -> frozenset[str]:
    """Return the activations that are not finite on one piece of the data, such as masked attention scores."""
    source, augmented = folder / "trial.onnx", folder / "trial_augmented.onnx"
    source.write_bytes(program)
    calibrator = create_calibrator(source, list(operators), augmented_model_path=str(augmented))
    calibrator.infer_session = exact_session(augmented)
    calibrator.collect_data(OneBatch(feeds))
    return _non_finite(calibrator.compute_data())


def _leave_out(calibrator: Any, infinite: frozenset[str]) -> None:
    """Collect no histogram of tensors that are not finite, which has no ends."""
    if isinstance(calibrator, HistogramCalibrater):
        calibrator.tensors_to_calibrate -= infinite


def _non_finite(ranges: TensorsData) -> frozenset[str]:
    ends = {name: np.concatenate([np.ravel(end) for end in found.range_value]) for name, found in ranges.items()}
    return frozenset(name for name, values in ends.items() if not np.isfinite(values).all())
