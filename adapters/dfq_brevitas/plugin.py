"""Registers the calibrator "brevitas"; imports neither torch nor the framework."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfq_brevitas.options import BrevitasOptions
from dfq_plugins.hookspecs import hookimpl
from dfq_plugins.types import CalibratorEntry

if TYPE_CHECKING:
    from collections.abc import Iterable


@hookimpl
def dfq_calibrators() -> Iterable[CalibratorEntry]:
    """Register the graph mode calibrator."""
    yield CalibratorEntry(
        name="brevitas",
        summary="Brevitas graph PTQ, 2 to 8 bits and binary weights: QONNX for FINN, QCDQ for ONNX Runtime",
        factory="dfq_brevitas.calibrator:BrevitasCalibrator",
        requires=("brevitas", "onnx", "onnxoptimizer", "onnxruntime", "qonnx"),
        install="dfq-plugins[brevitas]",
        options=BrevitasOptions,
        artifact_suffixes=(".qonnx.onnx", ".qcdq.onnx"),
    )
