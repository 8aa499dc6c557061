"""Gives the network's output quantizer headroom above the calibrated range.

Synthetic inputs do not produce logits as large as those of real ones: if only BatchNorm statistics are matched, the
largest logits stay below half of that. Logits beyond the end of the range would all saturate to the same integer, and
the arg max among them would be lost. The integer kernels of the x86 engine already have that headroom, because their
reduced range ends at half of what the storage holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.ao.quantization import FixedQParamsObserver

from dfq_shared.observers import observers_of_output, replace_observers
from dfq_torch_ao.input_range import moves_values
from dfq_torch_ao.observers import FAMILY, known_range, observer_of

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node


def widen_output_range(calibrated: GraphModule, factor: float) -> int:
    """Replace each observer of the network's output with one whose range is `factor` times as wide.

    Args:
        calibrated: a prepared module whose observers have seen data; changed in place.
        factor: at least 1; 1 changes nothing.

    Returns:
        Number of observers replaced: 0 if the output is computed in float.
    """
    if factor == 1:
        return 0
    modules = dict(calibrated.named_modules(remove_duplicate=False))

    def observes(node: Node) -> bool:
        observer = observer_of(modules.get(str(node.target))) if node.op == "call_module" else None
        return observer is not None and not isinstance(observer, FixedQParamsObserver)

    found = observers_of_output(calibrated, observes, lambda node: moves_values(node, modules))
    observers = {id(modules[str(node.target)]) for node in found}
    replace_observers(
        calibrated, observers, lambda observer: known_range(observer, FAMILY.observed_range(observer, factor))
    )
    return len(observers)
