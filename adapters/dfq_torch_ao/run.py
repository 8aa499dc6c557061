"""What `prepare` was told, carried along for the later steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch.fx import GraphModule

from dfq_plugins.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from dfq_plugins.types import InputSpec, Recipe

_KEY = "dfq_torch_ao"


@dataclass(frozen=True)
class Run:
    """Settings of one way through the calibrator, kept in the graph module's `meta`.

    Args:
        spec: input of the network.
        recipe: bit widths that were asked for.
        engine: engine that the weights are packed for.
        highest_activation: highest integer of an activation; 127 with eight bits in a reduced range.
        non_traceable: submodules left out on purpose.
        training: whether it was prepared for quantization-aware training.
    """

    spec: InputSpec
    recipe: Recipe
    engine: str
    highest_activation: int
    non_traceable: tuple[str, ...]
    training: bool = False

    def attach(self, graph: GraphModule) -> None:
        """Keep the settings with `graph`."""
        graph.meta[_KEY] = self

    @classmethod
    def of(cls, module: nn.Module) -> tuple[GraphModule, Run]:
        """Return the module as the graph module that it is, and its settings.

        Raises:
            UsageError: the module does not come from this calibrator.
        """
        if isinstance(module, GraphModule) and isinstance(run := module.meta.get(_KEY), cls):
            return module, run
        raise UsageError(
            f"torch-ao works on models that its own prepare() returned, got {type(module).__name__}. "
            "Call prepare() first; what your own prepare_fx returned, convert with torch.ao's own convert_fx."
        )
