"""Writes a calibrated model as ONNX with QuantizeLinear and DequantizeLinear, and checks the file."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import onnx

from dfq_plugins.errors import ArtifactError
from dfq_plugins.quantization.artifacts import ArtifactRecipe, write_artifacts
from dfq_plugins.quantization.dynamic_sizes import check_other_sizes, open_axes
from dfq_plugins.quantization.notices import Notice, silenced
from dfq_plugins.quantization.onnx_checks import check_onnx
from dfq_plugins.quantization.onnx_exporter import export_at, write_onnx
from dfq_plugins.quantization.onnx_graph import GraphIndex
from dfq_plugins.quantization.onnx_quantizers import qdq_quantizers
from dfq_plugins.types import Check
from dfq_shared.static_pooling import StaticAdaptivePooling
from dfq_shared.tensorrt.integers import torch_run, torch_weights
from dfq_shared.tensorrt.markers import (
    active_quantizers,
    integer_format,
    is_weight,
    marked_copy,
    quantized_weights,
)
from dfq_shared.tensorrt.operators import DEQUANTIZE, QUANTIZE, WEIGHTED
from dfq_shared.tensorrt.qdq_graph import QdqModel, insert_pairs
from dfq_shared.tensorrt.quantizers import is_integer
from dfq_shared.tensorrt.rules import RULES, check_rules, residual_additions

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import nn

    from dfq_plugins.quantization.onnx_quantizers import FileQuantizer
    from dfq_plugins.types import Artifact, Inputs, Specification
    from dfq_shared.tensorrt.backend import Backend
    from dfq_shared.tensorrt.qdq_graph import IntegerFormat

EXPORTER_NOTICES = (
    # The quantizer marker has no shape inference; it sets its output to its input's type.
    Notice("The shape inference of dfq::FakeQuantize type is missing", module=".*torch.onnx.*"),
)
"""Warnings of torch's exporter that say nothing about the user's model."""

OPSET = 17
CONTAINER_BITS = 8
"""Width of the integers that QuantizeLinear produces in this opset; narrower values are stored in them."""


def export_onnx(
    model: nn.Module,
    spec: Specification,
    folder: Path,
    *,
    backend: Backend,
    samples: Inputs,
    batch_size: int | None = None,
    dynamic_sizes: bool = False,
) -> tuple[Artifact, ...]:
    """Export `model` to `folder`, check the file, and keep it if it passes.

    Args:
        model: calibrated model.
        spec: the inputs of the network.
        folder: where to write; created if it does not exist.
        backend: the framework: its file name, and the warnings that are silenced.
        samples: inputs `(N, *shape)` to compare on.
        batch_size: size of the batch axis in the file; None keeps it dynamic.
        dynamic_sizes: whether the spatial axes of the inputs are dynamic as well.

    Raises:
        ArtifactError: the model cannot be exported, or the file breaks one of TensorRT's rules or does not compute what
            the model does.
        DataError: the folder cannot be written.
    """
    formats = _formats(model)
    axes = open_axes(spec, sizes=dynamic_sizes)
    write = partial(_write, model, formats, samples, spec, batch_size, axes, backend)
    check = partial(
        check_file,
        model=model,
        samples=samples,
        spec=spec,
        batch_size=batch_size,
        dynamic_sizes=dynamic_sizes,
    )
    return write_artifacts(
        [ArtifactRecipe(folder / backend.file_name, "ONNX, QuantizeLinear/DequantizeLinear", write, check)]
    )


def _formats(model: nn.Module) -> dict[str, IntegerFormat]:
    quantizers = active_quantizers(model)
    if not all(map(is_integer, quantizers.values())):
        raise ArtifactError(
            "Only integers are written to ONNX here, but the levels of this model are floating-point numbers. Use the "
            "torch model, or its framework's own export."
        )
    formats = {name: integer_format(quantizer) for name, quantizer in quantizers.items()}
    wide = [name for name, form in formats.items() if not form.fits_int8]
    if wide:
        raise ArtifactError(
            f"TensorRT computes in int8, with levels -128 to 127, but the quantizer {wide[0]!r} has levels "
            f"{formats[wide[0]].lowest} "
            f"to {formats[wide[0]].highest}. Use unsigned=auto, which uses unsigned levels only below 8 bits."
        )
    return formats


def _write(
    model: nn.Module,
    formats: Mapping[str, IntegerFormat],
    inputs: Inputs,
    spec: Specification,
    batch_size: int | None,
    axes: Mapping[str, Mapping[int, str]],
    backend: Backend,
    path: Path,
) -> None:
    weights = {name: weight.float().numpy() for name, weight in quantized_weights(model).items()}
    with silenced(backend.notices, logger=backend.logger):
        _trace(marked_copy(model), spec, inputs, axes, path, batch_size)
    exported = insert_pairs(onnx.load(path), formats, weights)
    note_integers(exported)
    onnx.checker.check_model(exported.proto)
    onnx.save(exported.proto, path)


INTEGERS = "dfq_integers: "
"""Prefix of the metadata keys that name the tensors of each quantizer."""


def note_integers(exported: QdqModel) -> None:
    """Record in the file's metadata which tensors hold the integers of each quantizer."""
    onnx.helper.set_model_props(
        exported.proto, {f"{INTEGERS}{name}": "\n".join(tensors) for name, tensors in exported.integers.items()}
    )


def read_file(path: Path) -> QdqModel:
    """Read a file that `export_onnx` wrote."""
    proto = onnx.load(path)
    noted = {entry.key: entry.value for entry in proto.metadata_props}
    return QdqModel(
        proto,
        {key.removeprefix(INTEGERS): tuple(noted[key].split("\n")) for key in noted if key.startswith(INTEGERS)},
    )


def _trace(
    marked: nn.Module,
    spec: Specification,
    inputs: Inputs,
    axes: Mapping[str, Mapping[int, str]],
    path: Path,
    batch_size: int | None,
) -> None:
    try:
        with silenced(EXPORTER_NOTICES), StaticAdaptivePooling():
            write = partial(write_onnx, marked, spec, inputs, axes, path, batch_size=batch_size)
            export_at(OPSET, lambda opset: write(opset=opset))
    except OSError:
        raise
    except Exception as error:  # torch.onnx raises whatever the model's own forward does
        raise ArtifactError(
            f"torch.onnx cannot export the quantized model: {error}. The quantized torch model itself is fine; "
            "rewrite the operation that the error names, or leave the export out."
        ) from error


def check_file(
    path: Path,
    *,
    model: nn.Module,
    samples: Inputs,
    spec: Specification,
    batch_size: int | None = None,
    dynamic_sizes: bool = False,
) -> tuple[Check, ...]:
    """Check a file against TensorRT's rules, and compare it with the torch model.

    Raises:
        ArtifactError: a check fails.
    """
    exported = read_file(path)
    onnx.checker.check_model(exported.proto)
    structure, rules = _check_structure(exported, model, batch_size), _check_rules(exported)
    quantizers = tuple(_named(exported, quantizer) for quantizer in qdq_quantizers(exported.proto.graph))
    run, classes = partial(torch_run, model, spec=spec), spec.num_classes
    checks = check_onnx(exported.proto, quantizers, torch_weights(model), run, samples, num_classes=classes)
    if dynamic_sizes:
        checks = (*checks, check_other_sizes(exported.proto, model, spec))
    return (structure, rules, *checks)


def _named(exported: QdqModel, quantizer: FileQuantizer) -> FileQuantizer:
    """Return the quantizer with the names of torch's quantizers that it stands for."""
    names = tuple(name for name, tensors in exported.integers.items() if quantizer.integers in tensors)
    return replace(quantizer, names=names)


def _check_structure(exported: QdqModel, model: nn.Module, batch_size: int | None) -> Check:
    """Require that every quantized layer reads from a DequantizeLinear."""
    quantizers = active_quantizers(model)
    in_float = float_inputs(exported, list(quantizers))
    if in_float:
        raise ArtifactError(
            f"Part of the exported model would run in float: {'; '.join(in_float)}. Use the torch model, and report "
            "this."
        )
    kinds = [node.op_type for node in exported.proto.graph.node]
    stored = sorted({q.num_bits for q in quantizers.values() if q.num_bits < CONTAINER_BITS})
    note = f"; {' and '.join(map(str, stored))}-bit levels are stored in int8" if stored else ""
    opset = next(entry.version for entry in exported.proto.opset_import if not entry.domain)
    batch = f"a batch of {batch_size}" if batch_size else "a batch of any size"
    return Check(
        "structure",
        f"{kinds.count(QUANTIZE)} pairs of {QUANTIZE} and {DEQUANTIZE} feed {len(quantizers)} quantized inputs and "
        f"weights{note}; opset {opset}, {batch}",
    )


def float_inputs(exported: QdqModel, quantizers: list[str]) -> list[str]:
    """Return which quantized inputs and weights arrive in float, judged by what the layers read, not by counting pairs.

    Two quantizers of one tensor with one range form one pair, which feeds both layers.

    Args:
        exported: the model of a file.
        quantizers: the active quantizers of the torch model.
    """
    index = GraphIndex(exported.proto.graph)
    found = []
    for name in quantizers:
        tensors = exported.integers.get(name, ())
        if not tensors:
            found.append(f"{name!r} has no {QUANTIZE}")
        for tensor in dict.fromkeys(tensors):
            found += [f"{name!r}: {reason}" for reason in _unfed(index, name, tensor)]
    return found


def _unfed(index: GraphIndex, name: str, tensor: str) -> Iterator[str]:
    producer = index.producers.get(tensor)
    dequantizers = [node for node in index.readers.get(tensor, ()) if node.op_type == DEQUANTIZE]
    readers = [reader for node in dequantizers for reader in index.readers.get(node.output[0], ())]
    if producer is None or producer.op_type != QUANTIZE:
        yield f"nothing quantizes {tensor!r}"
    elif not readers and not any(node.output[0] in index.outputs for node in dequantizers):
        yield f"no layer reads {tensor!r}"
    if not is_weight(name):
        return
    layers = list(_weighted_readers(index, readers))
    if not layers:
        yield "no layer multiplies by it"
    for layer in layers:
        source = index.source_node(layer.input[0])
        if source is None or source.op_type != DEQUANTIZE:
            yield f"the input {layer.input[0]!r} of its layer arrives in float"


def _weighted_readers(index: GraphIndex, readers: list[Any]) -> Iterator[Any]:
    """Yield the weighted layers among the readers, or directly after them."""
    for reader in readers:
        if reader.op_type in WEIGHTED:
            yield reader
        else:
            behind = [node for output in reader.output for node in index.readers.get(output, ())]
            yield from (node for node in behind if node.op_type in WEIGHTED)


def _check_rules(exported: QdqModel) -> Check:
    findings = check_rules(exported.proto)
    if findings:
        raise ArtifactError(
            f"The exported model breaks {len(findings)} of TensorRT's rules for explicit quantization: "
            f"{'; '.join(map(str, findings))}. Use the torch model, and report this."
        )
    fused, total = residual_additions(exported.proto)
    additions = f"; {fused} of {total} residual additions quantized" if total else ""
    return Check("TensorRT rules", f"passed: {', '.join(RULES)}{additions}")
