"""Compares an ONNX file with the torch model that it was exported from, one quantized tensor at a time.

Each section of the file between two quantizers is run on torch's integers. So every integer of the file is checked, and
a value on the boundary between two levels, which may be rounded either way, does not propagate its difference through
the network. The arithmetic is exact: ONNX Runtime without its optimizations. The outputs of the whole file, in exact
arithmetic and as users run it, are also reported, but do not decide whether the file passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto

from dfq_plugins.inputs import count, split
from dfq_plugins.quantization.integer_agreement import IntegerAgreement, compare_integers, compare_weights, merged
from dfq_plugins.quantization.onnx_quantizers import FileQuantizer, computed, cut_at, exposed
from dfq_plugins.quantization.onnx_runtime import exact_session, feeds_of, run_session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from dfq_plugins.types import Inputs

    Array = np.ndarray[Any, Any]

BATCH = 4
"""Batch size, which bounds the memory for the integers of a whole network."""

ENOUGH_INTEGERS = 20_000_000
"""Number of integers after which no further batch is compared."""

LARGEST_OUTPUT_DIFFERENCE = 1e-3
"""Maximum difference of an output, as a share of the largest output, when its layer starts from torch's integers; for
integers, the maximum share of different ones."""

SCALE_TOLERANCE = 1e-5
"""Maximum relative difference of two scales that count as equal: they may be computed in a different order."""


@dataclass(frozen=True)
class TorchTensor:
    """A tensor that the torch model quantizes, from one forward pass.

    Args:
        name: name of its quantizer.
        values: its values before rounding.
        scale: the step, which broadcasts to `values`.
        zero_point: the integer that represents the value 0.
        lowest: lowest integer.
        highest: highest integer.
        rounded: the values that torch computes with. None rounds `values` here, which may decide exact ties
            differently; averages of few integers are full of those.
    """

    name: str
    values: Array
    scale: Array
    lowest: float
    highest: float
    zero_point: float = 0.0
    rounded: Array | None = None

    @property
    def levels(self) -> Array:
        """Values in steps, before rounding."""
        return self.values / self.scale + np.float32(self.zero_point)

    @property
    def integers(self) -> Array:
        """The integers that torch computes with."""
        if self.rounded is not None:
            exact: Array = np.rint(self.rounded / self.scale + np.float32(self.zero_point))
            return exact
        rounded: Array = np.clip(np.rint(self.levels), self.lowest, self.highest)
        return rounded


@dataclass(frozen=True)
class TorchRun:
    """One forward pass of the torch model.

    Args:
        outputs: its outputs.
        activations: the tensors that it quantized, in order.
    """

    outputs: tuple[Array, ...]
    activations: tuple[TorchTensor, ...]


@dataclass(frozen=True)
class OnnxAgreement:
    """Result of comparing a file with torch.

    Args:
        tensors: agreement of each activation's integers, in torch's order.
        weights: agreement of each layer's weight.
        missing: names of torch's quantizers without a counterpart in the file.
        scales: quantizers whose scale differs in the file, each as text with both scales.
        output: largest difference of the outputs, as a share of the largest output, when the last layers start from
            torch's integers.
        expected: torch's outputs on the compared samples, in order.
    """

    tensors: tuple[IntegerAgreement, ...]
    weights: tuple[IntegerAgreement, ...]
    missing: tuple[str, ...]
    scales: tuple[str, ...]
    output: float
    expected: tuple[Array, ...]

    @property
    def samples(self) -> int:
        """Number of samples compared."""
        return len(self.expected[0])

    def faults(self) -> tuple[str, ...]:
        """Return the disagreements that rounding cannot explain; empty for a correct file."""
        found = [f"{name}: the file does not quantize it" for name in self.missing]
        found += self.scales
        found += [str(part) for part in (*self.weights, *self.tensors) if not part.agrees]
        if not self.output <= LARGEST_OUTPUT_DIFFERENCE:  # NaN, too
            found.append(f"the outputs differ by {self.output:.2%} of the largest one")
        return tuple(found)

    def __str__(self) -> str:
        parts = (*self.tensors, *self.weights)
        count, equal = sum(part.count for part in parts), sum(part.equal for part in parts)
        return (
            f"{_share(equal, count)} of {count:,} integers of {len(self.tensors)} activations and {len(self.weights)} "
            f"weights are equal on {self.samples} samples, each layer fed the same inputs; outputs within "
            f"{self.output:.1e} of the largest"
        )


def compare_file(
    model: Any,
    quantizers: Sequence[FileQuantizer],
    weights: Sequence[TorchTensor],
    run_torch: Callable[[Inputs], TorchRun],
    inputs: Inputs,
) -> OnnxAgreement:
    """Compare a file with the torch model.

    Args:
        model: the file's `onnx.ModelProto`, with operators that ONNX Runtime supports.
        quantizers: its quantized tensors.
        weights: the weights that the torch model quantizes.
        run_torch: runs the torch model on a batch of `inputs`.
        inputs: `(samples, *shape)`.

    Raises:
        ArtifactError: ONNX Runtime cannot run the file.
    """
    outputs = [value.name for value in model.graph.output]
    batches = batches_for(model, inputs)
    first = next(batches)
    expected = run_torch(first)
    whole = _run_whole(model, quantizers, feeds_of(model, first))
    pairs = match([q for q in quantizers if not q.constant], expected.activations, whole)
    session = exact_session(cut_at(model, [pair for pair in pairs if pair is not None]))
    parts: dict[int, list[IntegerAgreement]] = {}
    differences = [0.0]
    whole_outputs: list[tuple[Array, ...]] = []
    while True:
        fed = {
            pair.integers: tensor.integers.astype(onnx.helper.tensor_dtype_to_np_dtype(pair.element_type))
            for pair, tensor in zip(pairs, expected.activations, strict=True)
            if pair is not None
        }
        wanted = [*outputs, *map(computed, fed)]
        found = dict(zip(wanted, run_session(session, {**feeds_of(model, first), **fed}, wanted), strict=True))
        for index, (pair, tensor) in enumerate(zip(pairs, expected.activations, strict=True)):
            if pair is not None:
                part = compare_integers(
                    tensor.name,
                    found[computed(pair.integers)].astype(np.float32),
                    tensor.levels,
                    lowest=tensor.lowest,
                    highest=tensor.highest,
                    channel_axis=1,
                )
                parts.setdefault(index, []).append(part)
        differences += [_relative(found[key], value) for key, value in zip(outputs, expected.outputs, strict=True)]
        whole_outputs.append(expected.outputs)
        following = next(batches, None)
        if following is None or sum(part.count for group in parts.values() for part in group) >= ENOUGH_INTEGERS:
            break
        first = following
        expected = run_torch(first)
        if len(expected.activations) != len(pairs):
            break  # the forward pass depends on the values; the first batch was compared
    compared = tuple(merged(group) for _, group in sorted(parts.items()))
    # What does not follow the input, such as a position embedding, is stored in the file as weights are.
    stored = [tensor for tensor, pair in zip(expected.activations, pairs, strict=False) if pair is None]
    found_weights, missing = _compare_weights([*weights, *stored], quantizers, whole)
    return OnnxAgreement(
        compared,
        found_weights,
        missing,
        tuple(_other_scales(pairs, expected.activations)),
        float(np.max(differences)),  # NaN if any is
        tuple(np.concatenate(parts) for parts in zip(*whole_outputs, strict=True)),
    )


def match(
    quantizers: Sequence[FileQuantizer], tensors: Sequence[TorchTensor], computed_alone: Mapping[str, Array]
) -> list[FileQuantizer | None]:
    """Find, for each tensor that torch quantizes, the corresponding quantizer in the file.

    It has the tensor's name if the file says so, else the same shape and scale. If there are several, the one with the
    closest integers is chosen. Exporters merge
    equal quantizers of a tensor, so one quantizer in the file may match several in torch. If none has the scale, the
    next unused one with the right shape is chosen: its scale is then reported as a fault.

    Args:
        quantizers: activation quantizers in the file, in order.
        tensors: tensors that torch quantized, in order.
        computed_alone: the integers that the whole file computes on the same inputs, by name.
    """
    found: list[FileQuantizer | None] = []
    for tensor in tensors:
        alike = [q for q in quantizers if computed_alone[q.integers].shape == tensor.values.shape]
        named = [quantizer for quantizer in alike if tensor.name in quantizer.names]
        fitting = named or [quantizer for quantizer in alike if _same(quantizer.scale, tensor.scale)]
        if len(fitting) > 1:
            integers = tensor.integers
            fitting.sort(key=lambda quantizer: -float((computed_alone[quantizer.integers] == integers).mean()))
        found.append(fitting[0] if fitting else None)
    taken = {quantizer.integers for quantizer in found if quantizer is not None}
    left = [quantizer for quantizer in quantizers if quantizer.integers not in taken]
    for index, tensor in enumerate(tensors):
        if found[index] is None:
            other = next((q for q in left if computed_alone[q.integers].shape == tensor.values.shape), None)
            if other is not None:
                left.remove(other)
                found[index] = other
    return found


def _run_whole(model: Any, quantizers: Sequence[FileQuantizer], feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Run the unmodified file; return the integers of activations and the values of stored tensors, by name."""
    wanted = [
        (quantizer.values, TensorProto.FLOAT) if quantizer.constant else (quantizer.integers, quantizer.element_type)
        for quantizer in quantizers
    ]
    names = list(dict(wanted))
    return dict(zip(names, run_session(exact_session(exposed(model, wanted)), feeds, names), strict=True))


def _compare_weights(
    weights: Sequence[TorchTensor], quantizers: Iterable[FileQuantizer], whole: Mapping[str, Array]
) -> tuple[tuple[IntegerAgreement, ...], tuple[str, ...]]:
    """Compare each weight with the stored one that has its shape and scale; also return the names of missing ones."""
    left = [quantizer for quantizer in quantizers if quantizer.constant]
    found: dict[str, IntegerAgreement] = {}
    for exact in (True, False):
        for tensor in (tensor for tensor in weights if tensor.name not in found):
            for quantizer in left:
                values = whole[quantizer.values]
                if exact and not _same(quantizer.scale, tensor.scale):
                    continue
                # A file may store a matrix transposed; the shape of a square one does not tell.
                aligned = [way for way in (values, values.T) if way.shape == tensor.values.shape]
                if aligned:
                    expected = (tensor.integers - tensor.zero_point) * tensor.scale
                    ways = (compare_weights(tensor.name, way, expected, tensor.scale) for way in aligned)
                    found[tensor.name] = min(ways, key=lambda agreement: agreement.wrong)
                    left.remove(quantizer)
                    break
    missing = tuple(tensor.name for tensor in weights if tensor.name not in found)
    return tuple(found[tensor.name] for tensor in weights if tensor.name in found), missing


def _other_scales(pairs: Sequence[FileQuantizer | None], tensors: Sequence[TorchTensor]) -> Iterator[str]:
    for pair, tensor in zip(pairs, tensors, strict=False):
        if pair is not None and not _same(pair.scale, tensor.scale):
            scales = f"{_first(pair.scale):.6g} in the file, {_first(tensor.scale):.6g} in torch"
            yield f"{tensor.name}: different scale, {scales}"


def batches_for(model: Any, inputs: Inputs) -> Iterator[Inputs]:
    """Yield batches of the size that the file accepts; of a few samples if it accepts any size."""
    axis = model.graph.input[0].type.tensor_type.shape.dim[0]
    size = axis.dim_value if axis.HasField("dim_value") and axis.dim_value > 0 else BATCH
    size = min(size, count(inputs)) if not axis.HasField("dim_value") else size
    yield from (batch for batch in split(inputs, size) if count(batch) == size)


def _same(first: Array, second: Array) -> bool:
    one, other = np.ravel(first), np.ravel(second)
    return one.shape == other.shape and bool(np.allclose(one, other, rtol=SCALE_TOLERANCE, atol=0))


def _first(scale: Array) -> float:
    return float(np.ravel(scale)[0])


def _relative(found: Array, expected: Array) -> float:
    if found.shape != expected.shape:
        return float("nan")
    if expected.dtype.kind != "f":  # classes, indices and masks have no size; a tie may change a few
        return float((found != expected).mean())
    largest = max(float(np.abs(expected).max(initial=0)), float(np.finfo(np.float32).tiny))
    return float(np.abs(found.astype(np.float64) - expected).max(initial=0) / largest)


def _share(equal: int, count: int) -> str:
    return "100%" if equal == count else f"{min(equal / max(count, 1), 0.99999):.3%}"
