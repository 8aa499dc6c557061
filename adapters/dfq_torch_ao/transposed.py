"""Avoids the int8 kernels of transposed convolutions that compute something else.

x86 and fbgemm pack 2x2 kernels wrongly, and write past the end of their memory. The same layer with a 3x3 kernel, whose
last row and column are zero, has another packing. Its output has a margin at the end, which is cut off; the integers
are the same.

oneDNN confuses the two numbers of channels where they differ; such layers have to stay in float.
"""

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.fx import GraphModule, Node

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
TRANSPOSED_FUNCTIONS = (
    nn.functional.conv_transpose1d,
    nn.functional.conv_transpose2d,
    nn.functional.conv_transpose3d,
)
_WRONG_PACKING = {"x86": (2, 2), "fbgemm": (2, 2)}


def wrong_transposed_kernel(node: Node, module: nn.Module | None, engine: str) -> str | None:
    """Return why a transposed convolution cannot be computed in integers, or None if it can."""
    if node.op == "call_function" and node.target in TRANSPOSED_FUNCTIONS:
        return "transposed convolution with computed weights: torch.ao's kernels are not right for every shape"
    if engine != "onednn" or not isinstance(module, TRANSPOSED):
        return None
    if any(module.output_padding):
        return "oneDNN has no int8 transposed convolution with output_padding"
    if module.in_channels != module.out_channels:
        return "oneDNN's int8 transposed convolution is wrong where the numbers of channels differ"
    return None


def enlarge_transposed_kernels(observed: GraphModule, engine: str) -> dict[str, tuple[int, ...]]:
    """Pad the kernels that the engine packs wrongly with zeros, in place, before the conversion packs them.

    Returns:
        The margin of the output in each dimension, by the name of the layer.
    """
    margins: dict[str, tuple[int, ...]] = {}
    for name, module in observed.named_modules():
        if isinstance(module, nn.ConvTranspose2d) and module.kernel_size == _WRONG_PACKING.get(engine):
            module.weight = nn.Parameter(nn.functional.pad(module.weight.detach(), (0, 1, 0, 1)), requires_grad=False)
            module.kernel_size = (3, 3)
            margins[name] = tuple(module.dilation)
    return margins


def cut_margins(converted: GraphModule, margins: Mapping[str, tuple[int, ...]]) -> None:
    """Cut the margins off the outputs of enlarged layers, in place."""
    for node in list(converted.graph.nodes):
        if node.op != "call_module" or str(node.target) not in margins:
            continue
        kept: Any = (Ellipsis, *(slice(None, -size) for size in margins[str(node.target)]))
        with converted.graph.inserting_after(node):
            cut = converted.graph.call_function(operator.getitem, (node, kept))
        node.replace_all_uses_with(cut, delete_user_cb=functools.partial(operator.is_not, cut))
    converted.recompile()
