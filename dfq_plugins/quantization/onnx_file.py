"""A float network that is an ONNX file: read, checked, and run by ONNX Runtime like a torch module."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import torch
from onnx import TensorProto

from dfq_plugins.errors import INTEGER_INPUTS, DfqError, ModelError, UsageError, first_line
from dfq_plugins.inputs import count, map_inputs, rows
from dfq_plugins.network.file_network import FileNetwork
from dfq_plugins.quantization.onnx_module import OnnxModule

if TYPE_CHECKING:
    from torch import nn

SUFFIX = ".onnx"

_HALF = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}
_LARGEST = 2**31 - 1
"""Bytes of the largest program in one piece, which is what protobuf can write."""


class OnnxNetwork(FileNetwork, OnnxModule):
    """A float network from an ONNX file, as a module without gradients; see `OnnxModule`.

    It takes any number of samples: where the file fixes the batch size, the last batch is filled up and cut off again.

    Args:
        program: content of the file.
        name: name of the file, for messages.
    """

    def __init__(self, program: bytes, name: str) -> None:
        super().__init__(program, exact=False)
        self.name = name

    @property
    def shapes(self) -> dict[str, tuple[Any, ...]]:
        """The shape of each input by name, with the batch; open sizes are text or None."""
        return dict(self._shapes)

    @property
    def batch_size(self) -> int | None:
        """The batch size that the file is fixed to; None if it takes any."""
        sizes = [shape[0] for shape in self._shapes.values() if shape and isinstance(shape[0], int)]
        return sizes[0] if sizes else None

    def forward(self, *inputs: Any, **named: torch.Tensor) -> Any:
        """Return the outputs for inputs `(samples, *shape)`: one tensor, or a dictionary of several by name.

        Raises:
            DataError: the inputs do not have the names and shapes that the file takes.
        """
        given = self._by_name(inputs, named)
        samples, size = count(given), self.batch_size or 1
        missing = -samples % size
        if not missing or not samples:
            return super().forward(given)
        filled = rows(given, torch.arange(samples + missing).clamp(max=samples - 1))
        return map_inputs(lambda output: output[:samples], super().forward(filled))


def read_network(path: Path) -> OnnxNetwork:
    """Read an ONNX file as a float network.

    Args:
        path: the file; tensors in files next to it are read as well.

    Raises:
        ModelError: the file is missing, damaged or too large, is already quantized, or computes in half precision.
        UsageError: an input does not hold floating-point numbers.
    """
    if not path.is_file():
        raise ModelError(f"The ONNX file {path} does not exist. Give its path, relative to this folder or absolute.")
    try:
        model = without_overridable(onnx.load(path))
        size = model.ByteSize()
        program = model.SerializeToString() if size <= _LARGEST else b""
    except MemoryError:
        raise
    except Exception as error:  # protobuf's and onnx's own
        raise ModelError(
            f"{path} must be a readable ONNX file, but: {first_line(error).rstrip('.')}. Export it again, with the "
            "files of its tensors next to it."
        ) from error
    if not model.graph.node:
        raise ModelError(f"{path} must be an ONNX file with a network, but it has no content. Export it again.")
    if not program:
        raise ModelError(
            f"An ONNX file of at most 2 GiB can be quantized, with its tensors, but {path} has {size / 2**30:.1f} GiB. "
            "Quantize parts of the network."
        )
    _require_float(model, path)
    try:
        return OnnxNetwork(program, path.name)
    except DfqError as error:
        raise ModelError(f"{path} must be a network that ONNX Runtime runs, but: {error}") from error


def without_overridable(model: Any) -> Any:
    """Remove stored tensors from the inputs of a graph, in place: old exporters list them as such.

    Only tensors that cannot change are quantized, and folded.
    """
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    if stored:
        model.ir_version = max(model.ir_version, 4)  # the first in which stored tensors need not be inputs
    return model


def as_network(model: nn.Module | Path | str) -> nn.Module:
    """Return a network as it is, and an ONNX file, given by its path, as a module.

    Raises:
        UsageError: it is a path of another kind.
        ModelError: the file cannot be used; see `read_network`.
    """
    if not isinstance(model, (str, Path)):
        return model
    path = Path(model)
    if path.suffix.lower() != SUFFIX:
        raise UsageError(
            f"A network is a torch module or the path of an ONNX file, *{SUFFIX}, got {str(model)!r}. Load the "
            "network, e.g. with dfq_plugins.load_network, and pass it."
        )
    return read_network(path)


def _require_float(model: Any, path: Path) -> None:
    graph = model.graph
    quantized = sorted({node.op_type for node in graph.node if _is_quantized(node.op_type)})
    if quantized:
        raise ModelError(
            f"A float network is needed, but {path} is already quantized: it has {', '.join(quantized)}. Give the file "
            "that it was made from."
        )
    tensors = [(tensor.name, tensor.data_type) for tensor in graph.initializer]
    values = [(value.name, value.type.tensor_type.elem_type) for value in (*graph.input, *graph.output)]
    half = next(((name, _HALF[kind]) for name, kind in (*values, *tensors) if kind in _HALF), None)
    if half is not None:
        raise ModelError(
            f"A float32 network is needed, but {path} computes in {half[1]} (tensor {half[0]!r}). Export it in "
            "float32, and quantize that."
        )
    wrong = next((value.name for value in graph.input if value.type.tensor_type.elem_type != TensorProto.FLOAT), None)
    if wrong is not None:
        raise UsageError(
            f"The inputs of an ONNX file must be float32, but {wrong!r} of {path} is not. {INTEGER_INPUTS}"
        )


def _is_quantized(operator: str) -> bool:
    return operator in ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear") or (
        operator.startswith(("QLinear", "QGemm", "QAttention")) or operator.endswith(("Integer", "NBits"))
    )
