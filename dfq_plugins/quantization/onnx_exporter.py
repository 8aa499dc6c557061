"""Torch's ONNX exporter: called with inputs by name and any outputs, and what it needs around it.

It prints the whole program to standard output when an export fails, and it refuses an operator that a later operator
set has.
"""

from __future__ import annotations

import importlib
import re
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dfq_plugins.inputs import count, leaves, rows
from dfq_plugins.network.signature import signature_of
from dfq_plugins.quantization.notices import Notice, silenced
from dfq_plugins.quantization.output_names import exportable
from dfq_plugins.types import InputSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from dfq_plugins.types import Inputs, Specification

_EXPORTER = "torch.onnx._internal.torchscript_exporter.utils"
_SWITCH = "setup_onnx_logging"

NOTICES = (
    # dynamo=False is deliberate; it calls a torch function that will be removed together with it.
    Notice("You are using the legacy TorchScript-based ONNX export"),
    Notice("The feature will be removed. Please remove usage of this function", module=".*torch.onnx.*"),
    # Strided slices of constants are left to ONNX Runtime.
    Notice("Constant folding - Only steps=1 can be constant folded", module=".*torch.onnx.*"),
)
"""Warnings of the exporter that say nothing about the user's model."""


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Leave the exporter's log off within the block: torch turns it on in every export, and never off again."""
    try:
        exporter: Any = importlib.import_module(_EXPORTER)
        switch = getattr(exporter, _SWITCH)
    except (ImportError, AttributeError):  # another release of torch
        yield
        return
    setattr(exporter, _SWITCH, nullcontext)
    try:
        yield
    finally:
        setattr(exporter, _SWITCH, switch)


def export_at(opset: int, write: Callable[[int], object], latest: int = 18) -> int:
    """Call `write(opset)`, and again with a later operator set if the exporter names one that the network needs.

    Attention, for example, needs 14 and `grid_sample` 16. Most tools read early operator sets best, so none is later
    than it has to be.

    Args:
        opset: the operator set to begin with.
        write: exports with an operator set.
        latest: the last operator set to try; TorchScript's exporter ends with 20.

    Returns:
        The operator set that the network was exported with.

    >>> def write(opset):
    ...     if opset < 14:
    ...         raise RuntimeError("Support for this operator was added in version 14, try exporting with it")
    >>> export_at(13, write)
    14
    """
    while True:
        try:
            write(opset)
        except Exception as error:
            needed = re.search(r"operator was added in version (\d+)", str(error))
            if needed is None or not opset < int(needed[1]) <= latest:
                raise
            opset = int(needed[1])
        else:
            return opset


@torch.no_grad()
def write_onnx(
    network: nn.Module,
    spec: Specification,
    inputs: Inputs,
    input_axes: Mapping[str, Mapping[int, str]],
    path: Path,
    *,
    opset: int,
    batch_size: int | None = None,
) -> str:
    """Write a network with the exporter that keeps the names of modules; it raises whatever a forward pass does.

    Args:
        network: the network, on the CPU in eval mode.
        spec: its inputs.
        inputs: examples `(samples, *shape)`.
        input_axes: the open axes of each input by name; see `dfq_plugins.quantization.dynamic_sizes.open_axes`.
        path: where to write.
        opset: version of ONNX's operators.
        batch_size: size of the batch axis in the file; None leaves it open.

    Returns:
        What the exporter puts in front of the names of nodes: that of the wrappers that the network needed.
    """
    size = batch_size or 2  # an open batch of one could be traced as a constant
    example = tuple(leaves(rows(inputs, torch.arange(size) % count(inputs))))
    ordered = _in_order(network, spec)
    flat, names = exportable(ordered, example, input_axes)
    axes = {
        **{name: dict(open_ones) for name, open_ones in input_axes.items()},
        **{name: {0: "batch"} for name in names},
    }
    if batch_size:
        axes = {name: {axis: text for axis, text in open_ones.items() if axis} for name, open_ones in axes.items()}
    with silenced(NOTICES):
        torch.onnx.export(
            flat,
            example,
            str(path),
            dynamo=False,  # the newer exporter knows no markers of quantizers, and no names of modules
            opset_version=opset,
            input_names=list(input_axes),
            output_names=list(names),
            dynamic_axes=axes,
        )
    return "/network" * ((ordered is not network) + (flat is not ordered))


def _in_order(network: nn.Module, spec: Specification) -> nn.Module:
    """Return the network, wrapped unless its input is its only argument: torch.onnx reads the signature."""
    signature = signature_of(network)
    plain = isinstance(spec, InputSpec) and (signature is None or signature.plain)
    return network if plain else _InOrder(network, spec)


class _InOrder(nn.Module):
    """A network that takes its inputs as positional arguments."""

    def __init__(self, network: nn.Module, spec: Specification) -> None:
        super().__init__()
        self.network, self.spec = network, spec

    def forward(self, *inputs: torch.Tensor) -> Any:
        given = inputs[0] if isinstance(self.spec, InputSpec) else dict(zip(self.spec.named, inputs, strict=True))
        return self.spec.run(self.network, given)
