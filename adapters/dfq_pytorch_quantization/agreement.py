"""Runs an exported file in ONNX Runtime beside the torch model, and compares the integers of every quantizer.

Each stretch between two quantizers is run on torch's own integers. So every integer of the file is checked, and a value
on the edge between two levels, which may fall on either side, does not carry its difference on through the network.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper
from torch.utils import _pytree as pytree

from dfq_plugins.errors import ArtifactError
from dfq_pytorch_quantization.integer_agreement import IntegerAgreement, compare_integers, merge
from dfq_pytorch_quantization.markers import active_quantizers, is_weight, quantized_weights
from dfq_pytorch_quantization.onnx_index import GraphIndex

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import nn

    from dfq_pytorch_quantization.qdq_graph import IntegerFormat, QdqModel

    Array = np.ndarray[Any, Any]

CHUNK = 4
"""Samples that run at once, to bound the memory that the integers of a whole network take."""

LARGEST_OUTPUT_DIFFERENCE = 0.01
"""Largest difference of an output, as a share of the largest output, when its layer starts from torch's integers."""


@dataclass(frozen=True)
class Agreement:
    """What the comparison of a file with torch found.

    Args:
        tensors: the integers of each activation quantizer, in the order of the graph.
        weights: those of each weight quantizer.
        scales: the quantizers whose scale in the file is not that of torch.
        output: largest difference of the outputs, as a share of the largest output.
        expected: torch's outputs.
    """

    tensors: tuple[IntegerAgreement, ...]
    weights: tuple[IntegerAgreement, ...]
    scales: tuple[str, ...]
    output: float
    expected: tuple[Array, ...]

    def faults(self) -> list[str]:
        """Say what disagrees by more than rounding explains; empty for a sound file."""
        found = [f"{name}: the scale in the file is not that of torch" for name in self.scales]
        found += [_fault(part) for part in self.weights if part.wrong]
        found += [_fault(part) for part in self.tensors if not part.agrees]
        if not self.output <= LARGEST_OUTPUT_DIFFERENCE:  # NaN, too
            found.append(f"the outputs differ by {self.output:.2%} of the largest output")
        return found

    def __str__(self) -> str:
        both = (*self.tensors, *self.weights)
        count, equal = sum(part.count for part in both), sum(part.equal for part in both)
        return (
            f"{equal:,} of {count:,} integers of {len(both)} tensors equal on {len(self.expected[0])} samples "
            f"({_share(equal, count)}), {sum(part.wrong for part in both):,} of them off by more than a rounding tie, "
            f"largest difference {max((part.largest for part in both), default=0)} steps; outputs within "
            f"{self.output:.1e} of the largest"
        )


def compare_with_torch(
    exported: QdqModel,
    model: nn.Module,
    formats: Mapping[str, IntegerFormat],
    inputs: torch.Tensor,
    *,
    chunk: int,
) -> Agreement:
    """Compare the integers of a file with those of the torch model, weights and activations.

    Args:
        exported: the file's model, as it was read back.
        model: the fake-quantized torch model.
        formats: the integers of each quantizer of `model`.
        inputs: `(samples, *shape)`.
        chunk: samples to run at once; the file's own batch size where that is fixed.

    Raises:
        ArtifactError: torch calls a quantizer more or less often than the file, or ONNX Runtime cannot run the file.
    """
    cut = cut_at_quantizers(exported.proto, _activations(exported))
    session = exact_session(cut.SerializeToString())
    parts: dict[str, list[IntegerAgreement]] = {}
    output = [0.0]
    torch_outputs: list[list[Array]] = []
    baked = with_baked_weights(model)
    for batch in chunks(inputs, chunk):
        expected, calls = _torch_integers(baked, formats, batch)
        torch_outputs.append(expected)
        fed, levels = _matched(exported, calls, formats)
        names = [value.name for value in session.get_outputs()]
        found = dict(zip(names, _run(session, {"input": batch.numpy(), **fed}), strict=True))
        for tensor, (name, values) in levels.items():
            form = formats[name]
            part = compare_integers(
                name, found[_computed(tensor)], values, lowest=form.lowest, highest=form.highest, channel_axis=1
            )
            parts.setdefault(tensor, []).append(part)
        outputs = [found[value.name] for value in exported.proto.graph.output]
        output += [_relative(*pair) for pair in zip(outputs, expected, strict=True)]
    return Agreement(
        tuple(merge(part) for part in parts.values()),
        tuple(_weights(exported, model, formats)),
        tuple(_other_scales(exported, formats)),
        float(np.max(output)),  # NaN if any is
        tuple(np.concatenate(parts)[: len(inputs)] for parts in zip(*torch_outputs, strict=True)),
    )


def with_baked_weights(model: nn.Module) -> nn.Module:
    """Return a copy that computes the same without quantizing its weights anew in each forward pass."""
    baked = copy.deepcopy(model)
    for name, weight in quantized_weights(model).items():
        layer: Any = baked.get_submodule(name.rpartition(".")[0])
        if isinstance(vars(layer)["_parameters"].get("weight"), torch.Tensor):  # a parametrized weight is computed
            layer.weight.data = weight.to(layer.weight)
            layer.weight_quantizer.disable()
    return baked


def cut_at_quantizers(proto: Any, tensors: Sequence[str]) -> Any:
    """Return a copy of a model in which each of the int8 `tensors` is an input, and an output under another name."""
    cut = onnx.ModelProto()
    cut.CopyFrom(proto)
    wanted = set(tensors)
    for node in cut.graph.node:
        for index, name in enumerate(node.output):
            if name in wanted:
                node.output[index] = _computed(name)
    for name in tensors:
        cut.graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT8, None))
        cut.graph.output.append(helper.make_tensor_value_info(_computed(name), TensorProto.INT8, None))
    return cut


def _computed(tensor: str) -> str:
    return f"{tensor} (computed)"


def exact_session(model: str | bytes) -> Any:
    """Return a session that runs each operator as it is written, in float.

    The fused int8 kernels of the default session add up pairs of products in 16 bits on processors without VNNI, and
    cut off what is larger. That says something of the processor and nothing of the file.
    """
    settings = _settings()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return _session(model, settings)


def default_session(path: Path) -> Any:
    """Return a session with the optimizations that users get who set none."""
    return _session(str(path), _settings())


def _settings() -> Any:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.log_severity_level = 4  # not even errors, which are raised
    return settings


def _session(model: str | bytes, settings: Any) -> Any:
    try:
        return onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base but this
        raise ArtifactError(
            f"ONNX Runtime cannot load the exported model: {error}. The file was removed; use the torch model, and "
            "report this."
        ) from error


def run_file(session: Any, inputs: torch.Tensor, *, chunk: int | None = None) -> list[Array]:
    """Run a session on all inputs at once, or `chunk` at a time, and return its outputs.

    Raises:
        ArtifactError: ONNX Runtime cannot run the file on that many samples.
    """
    batches = [inputs] if chunk is None else list(chunks(inputs, chunk))
    outputs = [_run(session, {"input": batch.numpy()}) for batch in batches]
    return (
        [np.concatenate(parts)[: len(inputs)] for parts in zip(*outputs, strict=True)]
        if len(outputs) > 1
        else outputs[0]
    )


def _run(session: Any, feeds: Mapping[str, Array]) -> list[Array]:
    try:
        found: list[Array] = session.run(None, dict(feeds))
    except Exception as error:  # its exceptions share no base but this
        raise ArtifactError(
            f"ONNX Runtime cannot run the exported model on a batch of {len(feeds['input'])}: {error}. The file was "
            "removed; look for sizes, such as the batch's, that the model's forward takes as constants."
        ) from error
    return found


def chunks(inputs: torch.Tensor, size: int) -> Iterator[torch.Tensor]:
    """Yield batches of exactly `size`, the last one filled up with the first samples.

    >>> [batch.tolist() for batch in chunks(torch.arange(3), 2)]
    [[0, 1], [2, 0]]
    """
    for start in range(0, len(inputs), size):
        yield inputs[torch.arange(start, start + size) % len(inputs)]


@torch.no_grad()
def outputs_of(model: nn.Module, inputs: torch.Tensor) -> list[Array]:
    """Return every tensor that the model gives, in order."""
    outputs = pytree.tree_leaves(model(inputs.to(next(model.parameters()).device)))
    return [output.cpu().numpy() for output in outputs if isinstance(output, torch.Tensor)]


def _torch_integers(
    model: nn.Module, formats: Mapping[str, IntegerFormat], batch: torch.Tensor
) -> tuple[list[Array], dict[str, list[tuple[Array, Array]]]]:
    """Run torch; return its outputs, and for each call of a quantizer the values in steps and the integers."""
    calls: dict[str, list[tuple[Array, Array]]] = {}

    def note(name: str) -> Callable[..., None]:
        step = torch.from_numpy(np.asarray(formats[name].scale))

        def hook(_module: nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            levels, integers = (tensor.detach().cpu() / step for tensor in (arguments[0], output))
            calls.setdefault(name, []).append((levels.numpy(), integers.round_().to(torch.int8).numpy()))

        return hook

    handles = [
        quantizer.register_forward_hook(note(name))
        for name, quantizer in active_quantizers(model).items()
        if not is_weight(name)
    ]
    try:
        return outputs_of(model, batch), calls
    finally:
        for handle in handles:
            handle.remove()


def _matched(
    exported: QdqModel, calls: Mapping[str, list[tuple[Array, Array]]], formats: Mapping[str, IntegerFormat]
) -> tuple[dict[str, Array], dict[str, tuple[str, Array]]]:
    """Return the integers to feed for each tensor of the file, and the quantizer and values that belong to it."""
    fed: dict[str, Array] = {}
    levels: dict[str, tuple[str, Array]] = {}
    for name in (name for name in formats if not is_weight(name)):
        tensors, made = exported.integers.get(name, ()), calls.get(name, [])
        if len(tensors) != len(made):
            raise ArtifactError(
                f"The exported model calls the quantizer {name!r} {len(tensors)} times, the torch model {len(made)} "
                "times. The file was removed; look for branches of the model's forward that depend on the values."
            )
        for tensor, (values, integers) in zip(tensors, made, strict=True):
            fed.setdefault(tensor, integers)
            levels.setdefault(tensor, (name, values))
    return fed, levels


def _activations(exported: QdqModel) -> list[str]:
    names = (tensor for name, tensors in exported.integers.items() if not is_weight(name) for tensor in tensors)
    return list(dict.fromkeys(names))


def _weights(exported: QdqModel, model: nn.Module, formats: Mapping[str, IntegerFormat]) -> Iterator[IntegerAgreement]:
    """Compare the integers that the stored weights round to, computed as ONNX defines QuantizeLinear."""
    index = GraphIndex(exported.proto.graph)
    for name, tensors in exported.integers.items():
        if not is_weight(name):
            continue
        form = formats[name]
        layer: Any = model.get_submodule(name.rpartition(".")[0])
        weight = layer.weight.detach().cpu().float().numpy()
        shape = [1] * weight.ndim
        if form.axis is not None:
            shape[form.axis] = -1
        for tensor in dict.fromkeys(tensors):
            yield compare_integers(
                name,
                stored_integers(index, tensor),
                weight / form.scale.reshape(shape if form.axis is not None else ()),
                lowest=form.lowest,
                highest=form.highest,
            )


def _other_scales(exported: QdqModel, formats: Mapping[str, IntegerFormat]) -> Iterator[str]:
    """Yield the quantizers with a pair in the file whose scale is not theirs: few levels would hide it."""
    index = GraphIndex(exported.proto.graph)
    for name, tensors in exported.integers.items():
        for tensor in dict.fromkeys(tensors):
            nodes = (index.producers[tensor], *index.consumers.get(tensor, ()))
            scales = [index.constant(node.input[1]) for node in nodes]
            if not all(scale is not None and np.array_equal(scale, formats[name].scale) for scale in scales):
                yield name


def stored_integers(index: GraphIndex, tensor: str) -> Array:
    """Return the integers that a QuantizeLinear makes of an initializer."""
    node = index.producers[tensor]
    value, scale = index.constant(node.input[0]), index.constant(node.input[1])
    if value is None or scale is None:
        raise ArtifactError(
            f"The weight that {node.name} quantizes is no stored tensor. The file was removed; report this."
        )
    if scale.ndim:
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
        scale = scale.reshape([-1 if index == axis % value.ndim else 1 for index in range(value.ndim)])
    integers: Array = np.clip(np.rint(value / scale), -128, 127).astype(np.int8)
    return integers


def _relative(found: Array, expected: Array) -> float:
    if found.shape != expected.shape:
        return float("nan")
    largest = max(float(np.abs(expected).max(initial=0)), float(np.finfo(np.float32).tiny))
    return float(np.abs(found.astype(np.float64) - expected).max(initial=0) / largest)


def _fault(part: IntegerAgreement) -> str:
    return (
        f"{part.name}: {part.wrong:,} of {part.count:,} integers are off by more than a rounding tie, by up to "
        f"{part.largest} steps"
    )


def _share(equal: int, count: int) -> str:
    return "100%" if equal == count else f"{min(equal / count, 0.99999):.3%}"
