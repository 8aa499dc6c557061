"""What the shared algorithm asks of a framework."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from dfq_plugins.quantization.notices import Notice
    from dfq_plugins.types import Recipe
    from dfq_shared.tensorrt.options import RangeOptions


class Backend(ABC):
    """One of NVIDIA's frameworks, seen from the shared algorithm.

    Attributes:
        name: name of the calibrator.
        file_name: name of its artifact; the ending tells the frameworks' files apart.
        notices: the framework's warnings that do not concern the user's model.
        logger: name of a logger on which it reports its progress as warnings; None if it has none.
        max_observer: its calibrator of the largest absolute value, guarded by `Observer`.
        histogram_observer: its calibrator with a histogram, guarded by `HistogramObserver`.
    """

    name: ClassVar[str]
    file_name: ClassVar[str]
    notices: ClassVar[Iterable[Notice]]
    logger: ClassVar[str | None] = None
    max_observer: ClassVar[Any]
    histogram_observer: ClassVar[Any]

    @abstractmethod
    def quantized(self, model: nn.Module, recipe: Recipe, options: RangeOptions) -> nn.Module:
        """Insert the framework's quantizers into `model`, in place, and return it or what replaces it.

        Raises:
            ModelError: the model already holds the framework's quantizers in a way that a recipe cannot configure.
        """

    @abstractmethod
    def reason_for_float(self, module: nn.Module, *, pooling: bool) -> str | None:
        """Return why a layer stays in float; None for a layer that is quantized or has nothing to quantize."""

    @abstractmethod
    def new_quantizer(self, bits: int, *, histogram: bool) -> nn.Module:
        """Return a quantizer for a tensor between layers, signed, not yet calibrated and switched off."""

    @abstractmethod
    def search_weight_range(self, layer: Any, *, per_channel: bool, bins: int) -> None:
        """Set the weight ranges of `layer` to those with the least squared error, in the framework's search."""

    @abstractmethod
    def way_round(self, name: str) -> str:
        """Return what a user can do about the submodule `name` that the framework fails on."""
