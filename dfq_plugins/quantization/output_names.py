"""The names of outputs in exported files, and a network that exporters understand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dfq_plugins.network.outputs import OUTPUT, named_outputs

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

_POSITION = f"{OUTPUT}_"
"""Prefix of the names of outputs that have a position, not a key: a name may not be a number."""

_RESERVED = "input"

_QONNX_OUTPUT = "global_out"
"""Name that qonnx and FINN give the output of a network that returns one tensor."""


class FlatOutputs(nn.Module):
    """A network that returns its tensors as a tuple, or as one tensor: what every exporter understands.

    Args:
        network: a network that may return any structure.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Any) -> Tensor | tuple[Tensor, ...]:
        """Return the tensors in the order of `named_outputs`."""
        found = tuple(named_outputs(self.network(*inputs)).values())
        return found[0] if len(found) == 1 else found


@torch.no_grad()
def exportable(
    network: nn.Module, arguments: Sequence[Any], inputs: Collection[str] = ()
) -> tuple[nn.Module, tuple[str, ...]]:
    """Return a network that exporters understand, and the names of its outputs in a file.

    Args:
        network: the network; returned as it is if it returns one tensor.
        arguments: its positional arguments: inputs `(batch, *shape)`.
        inputs: names of the inputs in the file, which no output may have.
    """
    returned = network(*arguments)
    names = tuple(file_name(path, inputs) for path in named_outputs(returned))
    return (network if isinstance(returned, Tensor) else FlatOutputs(network).train(network.training)), names


def file_name(path: str, inputs: Collection[str] = ()) -> str:
    """Return the name in a file of the output with this path; `path_of` reverts it.

    >>> [file_name(path) for path in ("output", "out", "0", "0.boxes")]
    ['output', 'out', 'output_0', 'output_0.boxes']
    """
    return f"{_POSITION}{path}" if path[:1].isdigit() or path in {_RESERVED, *inputs} else path


def path_of(name: str, inputs: Collection[str] = ()) -> str:
    """Return the path of the output with this name in a file that has these inputs.

    >>> path_of("output_0.boxes"), path_of("output"), path_of("output_map"), path_of("output_map", ["map"])
    ('0.boxes', 'output', 'output_map', 'map')
    """
    if name == _QONNX_OUTPUT:
        return OUTPUT
    path = name.removeprefix(_POSITION)
    return path if path[:1].isdigit() or path in {_RESERVED, *inputs} else name
