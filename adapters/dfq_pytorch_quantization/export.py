"""Writes a calibrated model as ONNX with QuantizeLinear and DequantizeLinear, and checks the file in ONNX Runtime."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from dfq_plugins.errors import ArtifactError, DataError
from dfq_plugins.quantization.notices import silenced
from dfq_plugins.types import Artifact, Check
from dfq_pytorch_quantization.framework import onnx_fake_quantization
from dfq_pytorch_quantization.inputs import random_inputs
from dfq_pytorch_quantization.notices import LOGGER, NOTICES
from dfq_pytorch_quantization.swap import quantized_modules

if TYPE_CHECKING:
    from pathlib import Path

    from dfq_plugins.types import InputSpec

FILE_NAME = "model_qdq.onnx"
OPSET = 17
CONTAINER_BITS = 8
"""Width of the integers that QuantizeLinear makes in this opset; narrower values are stored in them."""

LEAST_AGREEMENT = 0.80
"""Share of samples that must have the same first class in ONNX Runtime as in torch.

Differences that are allowed turn near ties: 2 classes of 32 in a sound export of a MobileNetV1 at W4A4.
"""

LARGEST_DEVIATION = 0.10
"""Largest mean difference of outputs, as a share of their standard deviation in torch.

The sums of a convolution differ in the last bits between the two, so that now and then a value falls on the other side
of a rounding edge, and moves by one level. A sound W8A8 export of a MobileNetV1, 28 layers, deviates by 0.027.
"""


def export_onnx(model: nn.Module, spec: InputSpec, folder: Path, *, samples: torch.Tensor | None) -> Artifact:
    """Export `model` into `folder`, compare the file with it on `samples`, and hand it over if they agree.

    Args:
        model: calibrated model.
        spec: the input of the network.
        folder: is created where it does not exist.
        samples: inputs `(N, *shape)` to compare on; random ones in the range of the spec if None.

    Raises:
        ArtifactError: the model cannot be exported, or the file does not compute what the model does; no file is left.
        DataError: the folder cannot be written.
    """
    path, partial = folder / FILE_NAME, folder / f".{FILE_NAME}.partial"
    inputs = random_inputs(spec) if samples is None else samples
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            _write(exportable_copy(model), inputs[:2], partial)
            checks = (
                _check_structure(partial, model),
                _check_agreement(partial, model, inputs, classifies=spec.num_classes is not None),
            )
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"Cannot write {path}: {error}. Choose a writable folder with free space.") from error
    return Artifact(path, "ONNX, QuantizeLinear/DequantizeLinear", path.stat().st_size, checks)


def exportable_copy(model: nn.Module) -> nn.Module:
    """Return a copy on the CPU that computes the same with 8-bit quantizers, the only ones that torch.onnx exports.

    A narrower quantizer becomes a clip to its own range before an 8-bit quantizer of the same step: the same levels,
    stored in wider integers. Weights are clipped beforehand.
    """
    exportable = copy.deepcopy(model).cpu().eval()
    for _, module in quantized_modules(exportable):
        if module.input_quantizer.num_bits < CONTAINER_BITS:
            module._input_quantizer = nn.Sequential(_clip(module.input_quantizer), _widened(module.input_quantizer))  # noqa: SLF001
        weight_quantizer = getattr(module, "weight_quantizer", None)
        if weight_quantizer is not None and weight_quantizer.num_bits < CONTAINER_BITS:
            low, high = _limits(weight_quantizer)
            module.weight.data = module.weight.data.clamp(low, high)
            _widened(weight_quantizer)
    return exportable


def _limits(quantizer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the values of the lowest and the highest level."""
    step = quantizer.step_size
    highest = 2 ** (quantizer.num_bits - 1 + int(quantizer.unsigned)) - 1
    return (torch.zeros_like(step) if quantizer.unsigned else -(highest + 1) * step), highest * step


def _clip(quantizer: Any) -> nn.Module:
    low, high = _limits(quantizer)
    return nn.Hardtanh(low.item(), high.item())


def _widened(quantizer: Any) -> nn.Module:
    """Return the quantizer with more levels of the same step."""
    step = quantizer.step_size
    quantizer.num_bits = CONTAINER_BITS
    quantizer.amax.copy_(step * (2 ** (CONTAINER_BITS - 1 + int(quantizer.unsigned)) - 1))
    module: nn.Module = quantizer
    return module


def _write(exportable: nn.Module, inputs: torch.Tensor, path: Path) -> None:
    example = torch.cat([inputs, inputs])[:2]  # a batch of one could be traced as a constant
    try:
        with torch.no_grad(), silenced(NOTICES, logger=LOGGER), onnx_fake_quantization():
            torch.onnx.export(
                exportable,
                (example,),
                str(path),
                dynamo=False,  # the newer exporter knows no fake quantization
                opset_version=OPSET,
                input_names=["input"],
                output_names=["output"],
                dynamic_axes={"input": {0: "batch"}, "output": {0: "batch"}},
            )
    except OSError:
        raise
    except Exception as error:  # torch.onnx raises whatever the model's own forward does
        raise ArtifactError(
            f"torch.onnx cannot export the quantized model: {error}. The quantized torch model itself is sound; "
            "rewrite the operation that is named, or leave the export out."
        ) from error


def _check_structure(path: Path, model: nn.Module) -> Check:
    """Require a pair of nodes for every quantizer of `model`."""
    graph = onnx.load(path)
    onnx.checker.check_model(graph)
    kinds = [node.op_type for node in graph.graph.node]
    pairs, expected = kinds.count("QuantizeLinear"), len(_active_quantizers(model))
    if pairs < expected or kinds.count("DequantizeLinear") != pairs:
        raise ArtifactError(
            f"The exported model has {pairs} QuantizeLinear nodes for {expected} quantizers; a part of it would run in "
            "float. It was removed."
        )
    stored = sorted({q.num_bits for q in _active_quantizers(model) if q.num_bits < CONTAINER_BITS})
    note = f"; {' and '.join(map(str, stored))}-bit levels are stored in 8-bit integers" if stored else ""
    return Check("structure", f"{pairs} pairs of QuantizeLinear and DequantizeLinear for {expected} quantizers{note}")


def _active_quantizers(model: nn.Module) -> list[Any]:
    both = (q for _, m in quantized_modules(model) for q in (m.input_quantizer, getattr(m, "weight_quantizer", None)))
    return [quantizer for quantizer in both if quantizer is not None and not quantizer._disabled]  # noqa: SLF001


def _check_agreement(path: Path, model: nn.Module, inputs: torch.Tensor, *, classifies: bool) -> Check:
    """Require that ONNX Runtime computes what `model` does, one sample and all of them at once."""
    expected = _torch_output(model, inputs)
    outputs = _onnx_output(path, inputs)
    shapes = (outputs.shape, _onnx_output(path, inputs[:1]).shape)
    if shapes != (expected.shape, expected[:1].shape):
        raise ArtifactError(
            f"The exported model gives outputs of the shapes {shapes} for {len(inputs)} samples and for one, "
            f"where torch gives {expected.shape}. The file was removed; look for sizes that the model's forward takes "
            "as constants."
        )
    difference = np.abs(outputs - expected)
    deviation = float(difference.mean() / max(float(expected.std()), np.finfo(np.float32).tiny))
    agreement = float((outputs.argmax(1) == expected.argmax(1)).mean()) if classifies else 1.0
    figures = (
        f"{f'same class for {agreement:.1%} of ' if classifies else ''}{len(inputs)} samples, largest difference "
        f"{difference.max():.3g}, mean {difference.mean():.3g} ({deviation:.2%} of the outputs' standard deviation)"
    )
    if not (agreement >= LEAST_AGREEMENT and deviation <= LARGEST_DEVIATION):
        raise ArtifactError(
            f"ONNX Runtime disagrees with the quantized torch model: {figures}; at least {LEAST_AGREEMENT:.0%} and at "
            f"most {LARGEST_DEVIATION:.0%} are asked for. The file was removed; use the torch model, and report this."
        )
    return Check("agreement with torch in ONNX Runtime", figures)


def _torch_output(model: nn.Module, inputs: torch.Tensor) -> Any:
    device = next(model.parameters()).device
    with torch.no_grad():
        output = model(inputs.to(device))
    return output.cpu().numpy()


def _onnx_output(path: Path, inputs: torch.Tensor) -> Any:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.log_severity_level = 4  # not even errors, which are raised
    try:
        session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        return session.run(None, {"input": inputs.numpy()})[0]
    except Exception as error:  # its exceptions share no base but this
        raise ArtifactError(
            f"ONNX Runtime cannot run the exported model on a batch of {len(inputs)}: {error}. The file was removed; "
            "look for sizes, such as the batch's, that the model's forward takes as constants."
        ) from error
