"""Where the host finds the calibrator: importing torchao logs a note to its own developers, which stays silent here."""

from __future__ import annotations

from dfq_plugins.quantization.notices import silenced
from dfq_torchao.notices import NOTICES

with silenced(NOTICES, logger="torch.utils._pytree"):
    from dfq_torchao.calibrator import TorchaoCalibrator

__all__ = ["TorchaoCalibrator"]
