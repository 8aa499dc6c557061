"""ExecuTorch programs: a converted model lowered to XNNPACK, for one sample at a time."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dfq_plugins.errors import DataError, PluginError, first_line
from dfq_plugins.network.outputs import named_outputs, nested_outputs

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dfq_plugins.types import Specification

_OUTPUTS = "dfq_outputs"
"""Method of the file that returns the paths of the outputs."""
_INPUTS = "dfq_inputs"
"""Method that returns the names of the inputs, in order; empty for a network with one."""


def write_executorch(program: Any, converted: nn.Module, spec: Specification, path: Path) -> None:
    """Lower an exported program for one sample to XNNPACK's kernels, and write it.

    Args:
        program: the program, its batch fixed to 1.
        converted: the model that it was made from.
        spec: its inputs.
        path: the file.
    """
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner  # noqa: PLC0415
    from executorch.exir import to_edge_transform_and_lower  # noqa: PLC0415  in the extra that its quantizer needs

    positional, keywords = program.example_inputs
    with torch.no_grad():
        names = list(named_outputs(converted(*positional, **keywords)))
    notes = {_OUTPUTS: json.dumps(names), _INPUTS: json.dumps([] if len(spec.named) == 1 else list(spec.named))}
    edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()], constant_methods=notes)
    path.write_bytes(edge.to_executorch().buffer)


def load_executorch(path: Path) -> nn.Module:
    """Load an ExecuTorch program as a module.

    Raises:
        PluginError: ExecuTorch is not installed.
        DataError: the file is damaged.
    """
    try:
        from executorch.runtime import Runtime, Verification  # noqa: PLC0415  optional
    except ImportError as error:
        raise PluginError(
            f"{path} needs ExecuTorch, which cannot be imported here: {error}. Install it with pip install executorch."
        ) from error
    try:
        program: Any = Runtime.get().load_program(path.read_bytes(), verification=Verification.InternalConsistency)
        names, inputs = (json.loads(program.load_method(note).execute([])[0]) for note in (_OUTPUTS, _INPUTS))
        return ExecutorchProgram(program, program.load_method("forward"), names, inputs)
    except Exception as error:
        raise DataError(
            f"{path} must be a readable ExecuTorch program, but: {first_line(error).rstrip('.')}. Export it again."
        ) from error


class ExecutorchProgram(nn.Module):
    """An ExecuTorch program, called like the network: it runs one sample after the other.

    Args:
        program: the loaded file, which the method reads from.
        method: its forward method.
        names: paths of its outputs.
        inputs: names of its inputs in order; empty if there is one.
    """

    def __init__(self, program: Any, method: Any, names: Sequence[str], inputs: Sequence[str]) -> None:
        super().__init__()
        self.program, self.method, self.names, self.inputs = program, method, tuple(names), tuple(inputs)

    @torch.no_grad()
    def forward(self, *given: Any, **named: Any) -> Any:
        """Return what the network returns, its lists as tuples."""
        values = list(given)
        if len(values) == 1 and isinstance(values[0], dict):
            values, named = [], values[0]
        tensors = (
            values + [named[name] for name in self.inputs[len(values) :]] if self.inputs else [*values, *named.values()]
        )
        samples = [self._run([tensor[index : index + 1] for tensor in tensors]) for index in range(len(tensors[0]))]
        joined = [torch.cat(parts) for parts in zip(*samples, strict=True)]
        return nested_outputs(dict(zip(self.names, joined, strict=True)))

    def _run(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        # The memory of the results belongs to the program, and channels-last inputs are another program's.
        return [result.clone() for result in self.method.execute([tensor.contiguous() for tensor in tensors])]
