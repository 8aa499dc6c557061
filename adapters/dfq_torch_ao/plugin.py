"""Registers the calibrator "torch-ao"; imports neither torch nor the framework."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfq_plugins.hookspecs import hookimpl
from dfq_plugins.types import CalibratorEntry
from dfq_torch_ao.options import TorchAoOptions

if TYPE_CHECKING:
    from collections.abc import Iterable


@hookimpl
def dfq_calibrators() -> Iterable[CalibratorEntry]:
    """Register the FX graph mode calibrator."""
    yield CalibratorEntry(
        name="torch-ao",
        summary="torch.ao.quantization, FX graph mode: int8 modules for x86, oneDNN and QNNPACK",
        factory="dfq_torch_ao.calibrator:TorchAoCalibrator",
        requires=("torch",),
        install="dfq-plugins[torch-ao]",
        options=TorchAoOptions,
        artifact_suffixes=(".torchscript.pt",),
    )
