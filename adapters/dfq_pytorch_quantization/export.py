"""Writes a calibrated model as ONNX with QuantizeLinear and DequantizeLinear, and checks the file in ONNX Runtime."""

from __future__ import annotations

import copy
from functools import partial
from typing import TYPE_CHECKING, Any

import onnx
import torch
from torch import nn

from dfq_plugins.errors import ArtifactError
from dfq_plugins.quantization.artifacts import ArtifactRecipe, write_artifacts
from dfq_plugins.quantization.notices import silenced
from dfq_plugins.quantization.onnx_checks import check_onnx
from dfq_plugins.quantization.onnx_quantizers import qdq_quantizers
from dfq_plugins.types import Check
from dfq_pytorch_quantization.framework import onnx_fake_quantization
from dfq_pytorch_quantization.integers import active_quantizers, torch_run, torch_weights
from dfq_pytorch_quantization.notices import LOGGER, NOTICES
from dfq_pytorch_quantization.swap import quantized_modules

if TYPE_CHECKING:
    from pathlib import Path

    from dfq_plugins.types import Artifact, InputSpec

FILE_NAME = "model_qdq.onnx"
OPSET = 17
CONTAINER_BITS = 8
"""Width of the integers that QuantizeLinear makes in this opset; narrower values are stored in them."""


def export_onnx(model: nn.Module, spec: InputSpec, folder: Path, *, samples: torch.Tensor) -> tuple[Artifact, ...]:
    """Export `model` into `folder`, compare the file with it on `samples`, and hand it over if they agree.

    Args:
        model: calibrated model.
        spec: the input of the network.
        folder: is created where it does not exist.
        samples: inputs `(N, *shape)` to compare on.

    Raises:
        ArtifactError: the model cannot be exported, or the file does not compute what the model does.
        DataError: the folder cannot be written.
    """

    def write(path: Path) -> None:
        _write(exportable_copy(model), samples[:2], path)

    check = partial(check_file, model=model, samples=samples, classifies=spec.num_classes is not None)
    return write_artifacts([ArtifactRecipe(folder / FILE_NAME, "ONNX, QuantizeLinear/DequantizeLinear", write, check)])


def exportable_copy(model: nn.Module) -> nn.Module:
    """Return a copy on the CPU that computes the same with 8-bit quantizers, the only ones that torch.onnx exports.

    A narrower quantizer becomes a clip to its own range before an 8-bit quantizer of the same step: the same levels,
    stored in wider integers. Weights are quantized beforehand, so that every engine rounds them to the same integers.
    """
    exportable = copy.deepcopy(model).cpu().eval()
    for _, module in quantized_modules(exportable):
        if module.input_quantizer.num_bits < CONTAINER_BITS:
            module._input_quantizer = nn.Sequential(_clip(module.input_quantizer), _widened(module.input_quantizer))  # noqa: SLF001
        weight_quantizer = getattr(module, "weight_quantizer", None)
        if weight_quantizer is not None and not weight_quantizer._disabled:  # noqa: SLF001  (no public access)
            module.weight.data = weight_quantizer(module.weight.data)
            if weight_quantizer.num_bits < CONTAINER_BITS:
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


def check_file(path: Path, *, model: nn.Module, samples: torch.Tensor, classifies: bool) -> tuple[Check, ...]:
    """Compare a file with the torch model, and tell what ONNX Runtime's default session computes.

    Raises:
        ArtifactError: the file is not valid, cannot be run, or does not agree with the model.
    """
    proto = onnx.load(path)
    onnx.checker.check_model(proto)
    quantizers = tuple(qdq_quantizers(proto.graph))
    run = partial(torch_run, model)
    checks = check_onnx(proto, quantizers, torch_weights(model), run, samples, classifies=classifies)
    return (_structure(proto, model), *checks)


def _structure(proto: Any, model: nn.Module) -> Check:
    """Say how many pairs of nodes there are; the exporter merges equal quantizers of one tensor."""
    quantizers = [q for which in ("input", "weight") for _, q in active_quantizers(model, which)]
    pairs = [node.op_type for node in proto.graph.node].count("QuantizeLinear")
    stored = sorted({q.num_bits for q in quantizers if q.num_bits < CONTAINER_BITS})
    note = f"; {' and '.join(map(str, stored))}-bit levels are stored in 8-bit integers" if stored else ""
    figures = f"{pairs} pairs of QuantizeLinear and DequantizeLinear for {len(quantizers)} quantizers{note}"
    return Check("structure", figures)
