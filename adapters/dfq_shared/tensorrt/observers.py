"""The framework's calibrators with three guards: they record the sign of values, accept zeros, and stay small."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from dfq_plugins.errors import ModelError
from dfq_shared.tensorrt.quantizers import set_unsigned
from dfq_shared.tensorrt.range_search import START_BIN, search_mse_range

if TYPE_CHECKING:
    from torch import nn

    from dfq_shared.tensorrt.backend import Backend

BINS = 2048
"""Bins of a new histogram: the framework's default."""

MAX_BINS = 4 * BINS
"""Maximum bins of a grown histogram; neighboring bins are merged before it would exceed them."""


class Observer:
    """Passes each tensor to the framework's calibrator, the next class in the MRO, unless it is all zeros.

    The histogram of an all-zero tensor has bins of width zero, and the framework divides by that width at the next
    tensor.
    """

    layer: str = ""
    """Name of the module whose input is observed."""

    lowest: float = math.inf
    """Lowest value seen; infinity before the first tensor."""

    highest: float = -math.inf
    """Highest value seen; minus infinity before the first tensor."""

    def collect(self, x: torch.Tensor) -> None:
        """Pass a tensor on.

        Raises:
            ModelError: it holds NaN or infinity.
        """
        low, high = (float(edge) for edge in torch.aminmax(x.detach()))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ModelError(
                f"Ranges need finite values, but the input of {self.layer!r} is not finite for finite network inputs. "
                "Fix the first layer of the float model whose output is NaN or infinite."
            )
        self.lowest, self.highest = min(self.lowest, low), max(self.highest, high)
        if low < 0 or high > 0:
            self._make_room(max(-low, high))
            super().collect(x)  # type: ignore[misc]  # the framework's calibrator

    def _make_room(self, highest: float) -> None:
        """Prepare for a tensor whose largest absolute value is `highest`."""

    def reset(self) -> None:
        """Forget everything."""
        self.lowest, self.highest = math.inf, -math.inf
        super().reset()  # type: ignore[misc]  # the framework's calibrator


class HistogramObserver(Observer):
    """Records a histogram of absolute values, from which entropy, percentile and mse choose a range.

    The next class in the MRO is the framework's histogram calibrator.
    """

    _num_bits: Any
    _unsigned: bool
    _num_bins: int
    _calib_hist: torch.Tensor | None
    _calib_bin_edges: torch.Tensor

    def collect(self, x: torch.Tensor) -> None:
        """Add `x` to the histogram, which the framework extends with bins of the same width if `x` exceeds it."""
        super().collect(x)
        if self._calib_hist is not None:
            # The framework computes the edges of an extended histogram with torch.arange, which can yield one too many.
            self._calib_bin_edges = self._calib_bin_edges[: self._calib_hist.numel() + 1]

    def compute_amax(
        self, method: str, *, stride: int = 1, start_bin: int = START_BIN, percentile: float = 99.99
    ) -> Any:
        """Return the range that the framework's `method` chooses; its slow `mse` search is vectorized."""
        if method != "mse" or self._calib_hist is None or self._calib_hist.numel() <= start_bin:
            search: Any = super()
            return search.compute_amax(method, stride=stride, start_bin=start_bin, percentile=percentile)
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
        """Merge bins so that `highest` needs at most `MAX_BINS`; the first batch can be a thousand times smaller."""
        if self._calib_hist is None:
            return
        width = float(self._calib_bin_edges[1])
        factor = math.ceil(highest / width / MAX_BINS)
        if factor > 1:
            padding = -self._calib_hist.numel() % factor
            merged = torch.nn.functional.pad(self._calib_hist, (0, padding)).view(-1, factor).sum(1)
            self._calib_hist, self._num_bins = merged, merged.numel()
            self._calib_bin_edges = torch.arange(merged.numel() + 1, device=merged.device) * (width * factor)


def observe(layer: str, quantizer: Any, backend: Backend) -> None:
    """Replace the framework's calibrator in the input quantizer of `layer` with the guarded version of its type.

    An unsigned quantizer then clips negative values to zero, as integer hardware does; the framework itself raises a
    TypeError at the first negative value.
    """
    histogram = hasattr(quantizer._calibrator, "_num_bins")  # noqa: SLF001  (no public access)
    kind = backend.histogram_observer if histogram else backend.max_observer
    observer = kind(quantizer.num_bits, None, quantizer.unsigned)
    observer.layer = layer
    quantizer._calibrator = observer  # noqa: SLF001  (as above)
    quantizer.register_forward_pre_hook(_clip_negative)


def _clip_negative(quantizer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return inputs[0].clamp(min=0) if quantizer.unsigned else inputs[0]


def start_observing(quantizer: Any) -> None:
    """Reset the quantizer's calibrator, including the sign, and start collecting."""
    set_unsigned(quantizer, unsigned=False)
    quantizer._calibrator.reset()  # noqa: SLF001  (no public access)
    quantizer.enable_calib()
