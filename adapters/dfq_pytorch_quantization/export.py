"""Writes a calibrated model as ONNX with QuantizeLinear and DequantizeLinear, and checks the file."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch

from dfq_plugins.errors import ArtifactError, DataError
from dfq_plugins.types import Artifact, Check
from dfq_pytorch_quantization.agreement import (
    CHUNK,
    compare_with_torch,
    default_session,
    outputs_of,
    run_file,
)
from dfq_pytorch_quantization.framework import quiet
from dfq_pytorch_quantization.inputs import random_inputs
from dfq_pytorch_quantization.markers import (
    active_quantizers,
    integer_format,
    is_weight,
    marked_copy,
    quantized_weights,
)
from dfq_pytorch_quantization.onnx_index import DEQUANTIZE, QUANTIZE, WEIGHTED, GraphIndex
from dfq_pytorch_quantization.qdq_graph import QdqModel, insert_pairs
from dfq_pytorch_quantization.static_pooling import StaticAdaptivePooling
from dfq_pytorch_quantization.tensorrt_rules import RULES, check_rules, residual_additions

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import nn

    from dfq_plugins.types import InputSpec
    from dfq_pytorch_quantization.agreement import Agreement
    from dfq_pytorch_quantization.qdq_graph import IntegerFormat

FILE_NAME = "model_qdq.onnx"
OPSET = 17
CONTAINER_BITS = 8
"""Width of the integers that QuantizeLinear makes in this opset; narrower values are stored in them."""

SAMPLES_COMPARED = 16
"""Samples that the integers are compared on: millions of them in any image network."""

EXPECTED_WARNINGS = (
    # dynamo=False is chosen on purpose, and calls a function of torch itself that is to go with it.
    ("You are using the legacy TorchScript-based ONNX export", ""),
    ("The feature will be removed. Please remove usage of this function", ".*torch.onnx.*"),
    # Strided slices of constants are left to ONNX Runtime.
    ("Constant folding - Only steps=1 can be constant folded", ".*torch.onnx.*"),
    # The marker of a quantizer has no shape inference, and takes its input's type by itself.
    ("The shape inference of dfq::FakeQuantize type is missing", ".*torch.onnx.*"),
)
"""Start of the message, and module, of each warning that says nothing about the model."""


def export_onnx(
    model: nn.Module, spec: InputSpec, folder: Path, *, samples: torch.Tensor | None, batch_size: int | None = None
) -> Artifact:
    """Export `model` into `folder`, check the file, and hand it over if it is sound.

    Args:
        model: calibrated model.
        spec: the input of the network.
        folder: is created where it does not exist.
        samples: inputs `(N, *shape)` to compare on; random ones in the range of the spec if None.
        batch_size: size of the batch axis in the file; None keeps it dynamic.

    Raises:
        ArtifactError: the model cannot be exported, the file breaks a rule of TensorRT, or it does not compute what the
            model does; no file is left.
        DataError: the folder cannot be written.
    """
    path, partial = folder / FILE_NAME, folder / f".{FILE_NAME}.partial"
    inputs = random_inputs(spec) if samples is None else samples
    formats = _formats(model)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            _write(model, formats, inputs, partial, batch_size)
            checks = check_file(partial, model, formats, inputs[:SAMPLES_COMPARED], spec, batch_size)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"Cannot write {path}: {error}. Choose a writable folder with free space.") from error
    return Artifact(path, "ONNX, QuantizeLinear/DequantizeLinear", path.stat().st_size, checks)


def _formats(model: nn.Module) -> dict[str, IntegerFormat]:
    formats = {name: integer_format(quantizer) for name, quantizer in active_quantizers(model).items()}
    wide = [name for name, form in formats.items() if not form.fits_int8]
    if wide:
        raise ArtifactError(
            f"TensorRT computes in int8, levels -128 to 127, and the quantizer {wide[0]!r} has levels "
            f"{formats[wide[0]].lowest} "
            f"to {formats[wide[0]].highest}. Use unsigned=auto, which makes unsigned levels below 8 bits only."
        )
    return formats


def _write(
    model: nn.Module, formats: Mapping[str, IntegerFormat], inputs: torch.Tensor, path: Path, batch_size: int | None
) -> None:
    weights = {name: weight.float().numpy() for name, weight in quantized_weights(model).items()}
    _trace(marked_copy(model), inputs, path, batch_size)
    exported = insert_pairs(onnx.load(path), formats, weights)
    note_integers(exported)
    onnx.checker.check_model(exported.proto)
    onnx.save(exported.proto, path)


INTEGERS = "dfq_integers: "
"""Start of the metadata keys that name the tensors of each quantizer."""


def note_integers(exported: QdqModel) -> None:
    """Write into the metadata of the file which tensors hold the integers of each quantizer."""
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


def _trace(marked: nn.Module, inputs: torch.Tensor, path: Path, batch_size: int | None) -> None:
    size = batch_size or 2  # a dynamic batch of one could be traced as a constant
    example = inputs[torch.arange(size) % len(inputs)]
    outputs = len(outputs_of(marked, example))
    names = ["output", *(f"output_{index}" for index in range(1, outputs))]
    axes = {} if batch_size else {name: {0: "batch"} for name in ("input", *names)}
    try:
        with torch.no_grad(), quiet(), StaticAdaptivePooling(), warnings.catch_warnings():
            for message, module in EXPECTED_WARNINGS:
                warnings.filterwarnings("ignore", message=message, module=module)
            torch.onnx.export(
                marked,
                (example,),
                str(path),
                dynamo=False,  # the newer exporter knows no markers
                opset_version=OPSET,
                input_names=["input"],
                output_names=names,
                dynamic_axes=axes,
            )
    except OSError:
        raise
    except Exception as error:  # torch.onnx raises whatever the model's own forward does
        raise ArtifactError(
            f"torch.onnx cannot export the quantized model: {error}. The quantized torch model itself is sound; "
            "rewrite the operation that is named, or leave the export out."
        ) from error


def check_file(
    path: Path,
    model: nn.Module,
    formats: Mapping[str, IntegerFormat],
    inputs: torch.Tensor,
    spec: InputSpec,
    batch_size: int | None = None,
) -> tuple[Check, ...]:
    """Check a file against the torch model and against TensorRT's rules.

    Raises:
        ArtifactError: a check fails.
    """
    exported = read_file(path)
    structure, rules = _check_structure(exported, model, batch_size), _check_rules(exported)
    chunk = batch_size or min(CHUNK, len(inputs))
    agreement = compare_with_torch(exported, model, formats, inputs, chunk=chunk)
    integers = _check_integers(agreement)
    classifies = spec.num_classes is not None
    default = _check_default_session(path, agreement.expected, inputs, batch_size, classifies=classifies)
    return structure, rules, integers, default


def _check_structure(exported: QdqModel, model: nn.Module, batch_size: int | None) -> Check:
    """Require that what every quantized layer reads arrives from a DequantizeLinear."""
    quantizers = active_quantizers(model)
    fed = float_inputs(exported, list(quantizers))
    if fed:
        raise ArtifactError(
            f"A part of the exported model would run in float: {'; '.join(fed)}. The file was removed; use the torch "
            "model, and report this."
        )
    kinds = [node.op_type for node in exported.proto.graph.node]
    stored = sorted({q.num_bits for q in quantizers.values() if q.num_bits < CONTAINER_BITS})
    note = f"; {' and '.join(map(str, stored))}-bit levels are stored in int8" if stored else ""
    batch = f"a batch of {batch_size}" if batch_size else "a batch of any size"
    return Check(
        "structure",
        f"{kinds.count(QUANTIZE)} pairs of {QUANTIZE} and {DEQUANTIZE} feed {len(quantizers)} quantized inputs and "
        f"weights{note}; opset {OPSET}, {batch}",
    )


def float_inputs(exported: QdqModel, quantizers: list[str]) -> list[str]:
    """Say which quantized inputs and weights arrive in float, by what the layers read and not by the number of pairs.

    Two quantizers of one tensor with one range are one pair, which feeds both layers.

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
    dequantizers = [node for node in index.consumers.get(tensor, ()) if node.op_type == DEQUANTIZE]
    readers = [reader for node in dequantizers for reader in index.consumers.get(node.output[0], ())]
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
    """Yield the layers behind nodes that only move values."""
    for reader in readers:
        if reader.op_type in WEIGHTED:
            yield reader
        else:
            behind = [node for output in reader.output for node in index.consumers.get(output, ())]
            yield from (node for node in behind if node.op_type in WEIGHTED)


def _check_rules(exported: QdqModel) -> Check:
    findings = check_rules(exported.proto)
    if findings:
        raise ArtifactError(
            f"The exported model breaks {len(findings)} of TensorRT's rules for explicit quantization: "
            f"{'; '.join(map(str, findings))}. The file was removed; use the torch model, and report this."
        )
    fused, total = residual_additions(exported.proto)
    additions = f"; {fused} of {total} residual additions quantized" if total else ""
    return Check("TensorRT rules", f"passed: {', '.join(RULES)}{additions}")


def _check_integers(agreement: Agreement) -> Check:
    faults = agreement.faults()
    if faults:
        raise ArtifactError(
            f"ONNX Runtime disagrees with the quantized torch model: {'; '.join(faults)}. In all, {agreement}. The "
            "file was removed; use the torch model, and report this."
        )
    return Check("integers equal to torch's in ONNX Runtime", str(agreement))


def _check_default_session(
    path: Path, expected: Sequence[Any], inputs: torch.Tensor, batch_size: int | None, *, classifies: bool
) -> Check:
    """Run the file as users do, whole and on one sample; only its shapes are judged, its values are information.

    On processors without VNNI the fused int8 kernels of ONNX Runtime cut off sums, which TensorRT does not.
    """
    session = default_session(path)
    found = run_file(session, inputs, chunk=batch_size)
    shapes = [output.shape for output in found]
    if shapes != [output.shape for output in expected]:
        raise ArtifactError(
            f"The exported model gives outputs of the shapes {shapes} for {len(inputs)} samples, where torch gives "
            f"{[output.shape for output in expected]}. The file was removed; look for sizes that the model's forward "
            "takes as constants."
        )
    if not batch_size:
        run_file(session, inputs[:1])
    difference = np.abs(found[0] - expected[0])
    deviation = float(difference.mean() / max(float(expected[0].std()), np.finfo(np.float32).tiny))
    logits = classifies and expected[0].ndim == 2  # noqa: PLR2004  (batch, classes)
    same = f"same class for {(found[0].argmax(1) == expected[0].argmax(1)).mean():.1%} of " if logits else ""
    return Check(
        "ONNX Runtime's default session on this processor, for information",
        f"{same}{len(inputs)} samples, largest difference {difference.max():.3g}, mean {difference.mean():.3g} "
        f"({deviation:.2%} of the outputs' standard deviation)",
    )
