"""The checks that an exported ONNX file must pass, and figures that are only reported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dfq_plugins.errors import ArtifactError
from dfq_plugins.inputs import rows
from dfq_plugins.quantization.artifacts import compare
from dfq_plugins.quantization.onnx_agreement import batches_for, compare_file
from dfq_plugins.quantization.onnx_runtime import default_session, exact_session, feeds_of, run_session
from dfq_plugins.types import Check

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dfq_plugins.quantization.onnx_agreement import TorchRun, TorchTensor
    from dfq_plugins.quantization.onnx_quantizers import FileQuantizer
    from dfq_plugins.types import Inputs

SHOWN_FAULTS = 5
"""Number of faults that an error message names; the record contains all of them."""


def check_onnx(
    model: Any,
    quantizers: Sequence[FileQuantizer],
    weights: Sequence[TorchTensor],
    run_torch: Callable[[Inputs], TorchRun],
    inputs: Inputs,
    *,
    num_classes: int | None,
    as_users_run: bool = True,
) -> tuple[Check, ...]:
    """Compare a file with the torch model; see `onnx_agreement`.

    Args:
        model: the file's `onnx.ModelProto`, with operators that ONNX Runtime supports.
        quantizers: its quantized tensors.
        weights: the weights that the torch model quantizes.
        run_torch: runs the torch model on a batch of `inputs`.
        inputs: `(samples, *shape)`.
        num_classes: number of classes; None or 0 if the network is not known to be a classifier.
        as_users_run: also report what ONNX Runtime's default session computes. This cannot fail the check: fused
            kernels differ from processor to processor.

    Raises:
        ArtifactError: the file cannot be run, or differs by more than rounding explains; the message names the layers.
    """
    agreement = compare_file(model, quantizers, weights, run_torch, inputs)
    faults = agreement.faults()
    if faults:
        more = f"; and {len(faults) - SHOWN_FAULTS} more" if len(faults) > SHOWN_FAULTS else ""
        raise ArtifactError(
            f"The file does not compute what the torch model does: {'; '.join(faults[:SHOWN_FAULTS])}{more}. Overall, "
            f"{agreement}. Use the converted torch model, and report this.",
            faults=faults,
        )
    program, compared = model.SerializeToString(), rows(inputs, slice(agreement.samples))
    whole = _compared(model, agreement.expected, _run(model, exact_session(program), compared), num_classes)
    checks = (
        Check("integers compared with torch's", str(agreement)),
        Check("whole file, exact arithmetic", whole),
    )
    if not as_users_run:
        return checks
    try:
        outcome = _compared(model, agreement.expected, _run(model, default_session(program), compared), num_classes)
    except ArtifactError as error:
        outcome = str(error)
    return (*checks, Check("whole file, ONNX Runtime's defaults on this processor, for information", outcome))


def _compared(model: Any, expected: Sequence[Any], found: Sequence[Any], num_classes: int | None) -> str:
    """Describe how each output of the file compares; by name if there are several."""
    parts = [compare(*pair, num_classes) for pair in zip(expected, found, strict=True)]
    if len(parts) == 1:
        return str(parts[0])
    return "; ".join(f"{value.name}: {part}" for value, part in zip(model.graph.output, parts, strict=True))


def _run(model: Any, session: Any, inputs: Inputs) -> list[Any]:
    """Return every output on all inputs; also run a single input if the file accepts any batch size."""
    fixed = model.graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_value")
    batches = list(batches_for(model, inputs)) if fixed else [inputs]
    if not fixed:
        run_session(session, feeds_of(model, rows(inputs, slice(1))))
    runs = [run_session(session, feeds_of(model, batch)) for batch in batches]
    return [np.concatenate(parts) for parts in zip(*runs, strict=True)]
