"""Calibration piece by piece: memory, weights of samples, and what ONNX Runtime computes on everything at once."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from onnxruntime.quantization.calibrate import create_calibrator
from torch import nn

from dfq_onnxruntime.float_program import float_program
from dfq_onnxruntime.framework import quiet_tools
from dfq_onnxruntime.options import OnnxRuntimeOptions
from dfq_onnxruntime.quantizing import KNOWN_OPERATORS
from dfq_onnxruntime.ranges import MOST_BINS, BoundedCollector, activation_ranges
from dfq_plugins.errors import DataError, DfqWarning
from dfq_plugins.types import InputSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

SPEC = InputSpec((3, 16, 16))


@pytest.fixture(scope="module")
def program() -> bytes:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(1568, 4)).eval()
    return float_program(network, SPEC, 13)


def ranges(
    program: bytes, batches: Iterable[torch.Tensor], batch_size: int | None = None, **settings: object
) -> dict[str, tuple[float, float]]:
    options = OnnxRuntimeOptions(**settings)  # type: ignore[arg-type]
    found, infinite = activation_ranges(program, batches, ["input"], options, KNOWN_OPERATORS, batch_size=batch_size)
    assert not infinite
    return {name: tuple(float(np.ravel(end)[0]) for end in value.range_value) for name, value in found.items()}


def batches(sizes: Iterable[int]) -> Iterator[torch.Tensor]:
    rng = torch.Generator().manual_seed(2)
    for size in sizes:
        yield torch.randn(size, 3, 16, 16, generator=rng)


@pytest.mark.parametrize("method", ["minmax", "percentile"])
def test_memory_does_not_grow_with_the_samples(program: bytes, method: str) -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        try:
            ranges(program, batches([16] * count), method=method)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(2)  # what is imported and cached on the first call
    activations_of_a_batch = 16 * 4 * (768 + 3 * 1568)
    assert peak(40) - peak(4) < activations_of_a_batch


def test_pieces_give_the_ranges_of_everything_at_once(program: bytes, tmp_path: Path) -> None:
    everything = torch.cat(list(batches([8, 8, 3])))
    (tmp_path / "float.onnx").write_bytes(program)
    with quiet_tools():
        calibrator = create_calibrator(
            tmp_path / "float.onnx", list(KNOWN_OPERATORS), augmented_model_path=str(tmp_path / "augmented.onnx")
        )
        calibrator.collect_data(_Reader([{"input": everything.numpy()}]))
        expected = {name: value.range_value for name, value in calibrator.compute_data().items()}
    found = ranges(program, batches([8, 8, 3]))
    assert set(found) == set(expected)
    for name, ends in found.items():
        assert ends == pytest.approx([float(end[0]) for end in expected[name]], rel=1e-5)


class _Reader:
    def __init__(self, feeds: list[dict[str, np.ndarray]]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def test_a_moving_average_weighs_every_sample_alike(program: bytes) -> None:
    """However the samples are cut into batches, and although the last batch is short."""
    everything = next(batches([17]))
    first, second, third = (
        ranges(program, everything.split(size), moving_average=True, averaging_constant=0.1) for size in (8, 17, 5)
    )
    expected = everything[0].max()
    for sample in everything[1:]:
        expected = expected + 0.1 * (sample.max() - expected)
    assert first["input"][1] == pytest.approx(float(expected), rel=1e-5)
    assert first == second == third


def test_a_histogram_does_not_grow_without_end() -> None:
    """A first batch near 0 would otherwise make a bin of every 1e-8."""
    for method, symmetric in (("percentile", False), ("percentile", True), ("entropy", False)):
        collector = BoundedCollector(method, symmetric, 128, 128, 99.0, "same")
        rng = np.random.default_rng(0)
        with quiet_tools():
            for scale in (1e-6, 1.0, 3.0):
                collector.collect({"tensor": [rng.normal(0, scale, 1000).astype(np.float32)]})
            low, high = collector.compute_collection_result()["tensor"][:2]
        histogram = collector.histogram_dict["tensor"]
        assert len(histogram[0]) <= 2 * MOST_BINS * 128
        assert histogram[0].sum() == pytest.approx(3000, abs=3)
        assert 2 < high <= 11
        assert -11 <= low < -2


def test_batches_of_a_fixed_size_are_filled_and_the_rest_is_said(program: bytes) -> None:
    with pytest.warns(DfqWarning, match=r"batches of exactly 4: the last 3 of 19 samples were not calibrated on"):
        found = ranges(program, batches([8, 8, 3]), batch_size=4)
    assert found["input"] == pytest.approx(ranges(program, batches([8, 8]))["input"])
    with pytest.raises(DataError, match=r"takes batches of 4 samples, but the data holds fewer"):
        ranges(program, batches([3]), batch_size=4)


def test_batch_norm_is_folded_and_shapes_are_known(program: bytes) -> None:
    proto = onnx.load_from_string(program)
    assert [node.op_type for node in proto.graph.node] == ["Conv", "Relu", "Flatten", "Gemm"]
    assert {entry.domain for entry in proto.opset_import} == {""}
