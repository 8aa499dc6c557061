"""Registers the calibrator "torchao"; imports neither torch nor the framework."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfq_plugins.hookspecs import hookimpl
from dfq_plugins.types import CalibratorEntry
from dfq_torchao.options import TorchaoOptions

if TYPE_CHECKING:
    from collections.abc import Iterable


@hookimpl
def dfq_calibrators() -> Iterable[CalibratorEntry]:
    """Register the PT2E calibrator."""
    yield CalibratorEntry(
        name="torchao",
        summary="torchao's PT2E flow: a graph of torch.export, compiled by Inductor, AOTInductor or ExecuTorch",
        factory="dfq_torchao.factory:TorchaoCalibrator",
        requires=("torchao",),
        install="dfq-plugins[torchao]",
        options=TorchaoOptions,
        artifact_suffixes=(".exported.pt2", ".aotinductor.pt2", ".pte"),
    )
