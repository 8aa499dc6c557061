"""The framework's calibrators with three guards: they note the sign of what they see, survive zeros, and stay small."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from dfq_plugins.errors import ModelError
from dfq_pytorch_quantization.framework import calib
from dfq_pytorch_quantization.range_search import START_BIN, search_mse_range

if TYPE_CHECKING:
    from torch import nn

BINS = 2048
"""Bins of a new histogram: the framework's own default."""

MAX_BINS = 4 * BINS
"""Bins of a grown histogram; before it would exceed them, neighboring bins are merged."""


class _Observer:
    """Passes each tensor on to the framework's calibrator, the next class in the MRO, unless it is all zeros.

    The histogram of a tensor of zeros has bins of width zero, by which the framework divides at the next tensor.
    """

    layer: str = ""
    """Name of the module whose input is observed."""

    lowest: float = math.inf
    """Lowest value seen; infinity before the first tensor."""

    highest: float = -math.inf
    """Highest value seen; minus infinity before the first tensor."""

    def collect(self, x: torch.Tensor) -> None:
        low, high = (float(edge) for edge in torch.aminmax(x.detach()))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ModelError(
                f"The input of {self.layer!r} is not finite for finite network inputs. Find the first layer of the "
                "float model whose output is NaN or infinite; a range cannot be calibrated on it."
            )
        self.lowest, self.highest = min(self.lowest, low), max(self.highest, high)
        if low < 0 or high > 0:
            self._make_room(max(-low, high))
            super().collect(x)  # type: ignore[misc]  # the framework's calibrator

    def _make_room(self, highest: float) -> None:
        """Get ready for a tensor whose largest absolute value is `highest`."""

    def reset(self) -> None:
        self.lowest, self.highest = math.inf, -math.inf
        super().reset()  # type: ignore[misc]  # the framework's calibrator


class MaxObserver(_Observer, calib.MaxCalibrator):  # type: ignore[misc]  # the framework has no types
    """Records the largest absolute value."""


class HistogramObserver(_Observer, calib.HistogramCalibrator):  # type: ignore[misc]  # the framework has no types
    """Records a histogram of absolute values, from which entropy, percentile and mse choose a range."""

    _calib_hist: torch.Tensor | None
    _calib_bin_edges: torch.Tensor

    def collect(self, x: torch.Tensor) -> None:
        """Add `x` to the histogram, which the framework extends by bins of its first width where `x` exceeds it."""
        super().collect(x)
        if self._calib_hist is not None:
            # The framework finds the edges of an extended histogram with torch.arange, which can round to one too many.
            self._calib_bin_edges = self._calib_bin_edges[: self._calib_hist.numel() + 1]

    def compute_amax(
        self, method: str, *, stride: int = 1, start_bin: int = START_BIN, percentile: float = 99.99
    ) -> Any:
        """Return the range that the framework's `method` chooses; its slow search for `mse` is done in one piece."""
        if method != "mse" or self._calib_hist is None or self._calib_hist.numel() <= start_bin:
            return super().compute_amax(method, stride=stride, start_bin=start_bin, percentile=percentile)
        return search_mse_range(
            self._calib_hist,
            self._calib_bin_edges.to(self._calib_hist.device),
            num_bits=self._num_bits,
            unsigned=self._unsigned,
            stride=stride,
            start_bin=start_bin,
        )

    def reset(self) -> None:
        """Forget everything, extra bins included."""
        super().reset()
        self._num_bins = BINS

    def _make_room(self, highest: float) -> None:
        """Merge bins so that `highest` needs no more than `MAX_BINS`; a first batch can be a thousand times smaller."""
        if self._calib_hist is None:
            return
        width = float(self._calib_bin_edges[1])
        factor = math.ceil(highest / width / MAX_BINS)
        if factor > 1:
            padding = -self._calib_hist.numel() % factor
            merged = torch.nn.functional.pad(self._calib_hist, (0, padding)).view(-1, factor).sum(1)
            self._calib_hist, self._num_bins = merged, merged.numel()
            self._calib_bin_edges = torch.arange(merged.numel() + 1, device=merged.device) * (width * factor)


def observe(layer: str, quantizer: Any) -> None:
    """Give the input quantizer of `layer` a guarded calibrator in place of the framework's plain one of its kind.

    Where the quantizer is unsigned, it will cut off what is below zero, as integer hardware does; the framework itself
    raises a TypeError at the first negative value.
    """
    histogram = isinstance(quantizer._calibrator, calib.HistogramCalibrator)  # noqa: SLF001  (no public access)
    observer = (HistogramObserver if histogram else MaxObserver)(quantizer.num_bits, None, quantizer.unsigned)
    observer.layer = layer
    quantizer._calibrator = observer  # noqa: SLF001  (as above)
    quantizer.register_forward_pre_hook(_cut_off_negative)


def _cut_off_negative(quantizer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return inputs[0].clamp(min=0) if quantizer.unsigned else inputs[0]


def set_unsigned(quantizer: Any, *, unsigned: bool) -> None:
    """Choose the sign of an input quantizer's integers, and of the levels that the searches of its calibrator count."""
    quantizer.unsigned = unsigned
    quantizer._calibrator._unsigned = unsigned  # noqa: SLF001  (no public access)


def start_observing(quantizer: Any) -> None:
    """Forget what the quantizer's calibrator saw, the sign included, and begin to collect."""
    set_unsigned(quantizer, unsigned=False)
    quantizer._calibrator.reset()  # noqa: SLF001  (no public access)
    quantizer.enable_calib()
