"""ONNX files for inputs of any size: which axes are left open, and the checks before and after the export."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from dfq_plugins.errors import ArtifactError, ModelError, UsageError, first_line
from dfq_plugins.inputs import blank_inputs, moved, random_inputs
from dfq_plugins.model_state import device_of
from dfq_plugins.network.outputs import named_outputs
from dfq_plugins.quantization.artifacts import compare
from dfq_plugins.quantization.onnx_runtime import exact_session, feeds_of, run_session
from dfq_plugins.types import Check, InputSpec

if TYPE_CHECKING:
    from torch import nn

    from dfq_plugins.types import Specification

_LARGEST_DEVIATION = 0.05
"""Mean difference of the outputs at another size, as a share of their standard deviation: values on the boundary of
two levels may be rounded either way. Wrong sizes in a file cause far more, or an error."""


def open_axes(spec: Specification, *, sizes: bool) -> dict[str, dict[int, str]]:
    """Return the open axes of each input for `torch.onnx.export`: the batch, and every spatial axis if `sizes` is set.

    >>> open_axes(InputSpec((3, 8, 8)), sizes=True)
    {'input': {0: 'batch', 2: 'input_size_0', 3: 'input_size_1'}}
    """
    return {
        name: {0: "batch"}
        | ({axis: f"{name}_size_{axis - 2}" for axis in range(2, len(one.shape) + 1)} if sizes else {})
        for name, one in spec.named.items()
    }


def enlarged(spec: Specification) -> Specification:
    """Return the specification of inputs with twice the size along each spatial axis.

    >>> enlarged(InputSpec((3, 8, 8))).shape
    (3, 16, 16)
    """
    if isinstance(spec, InputSpec):
        return replace(spec, shape=(spec.channels, *(2 * size for size in spec.shape[1:])))
    larger = {
        name: replace(one, shape=(one.channels, *(2 * size for size in one.shape[1:])))
        for name, one in spec.inputs.items()
    }
    return replace(spec, inputs=larger)


@torch.no_grad()
def require_other_sizes(model: nn.Module, spec: Specification) -> None:
    """Reject a network that takes inputs of only one size, before any work.

    Raises:
        UsageError: no input has spatial axes.
        ModelError: the network does not run at twice the size.
    """
    if all(len(one.shape) == 1 for one in spec.named.values()):
        raise UsageError("dynamic_sizes opens the spatial axes of the inputs, and there are none. Leave it out.")
    larger = enlarged(spec)
    try:
        larger.run(model, blank_inputs(larger, 2, device_of(model)))
    except Exception as error:
        raise ModelError(
            f"dynamic_sizes needs a network that takes inputs of any size, but {type(model).__name__} does not take "
            f"{larger.shape}: {first_line(error)}. Leave it out, or pool the features to a fixed size before the first "
            "linear layer."
        ) from error


@torch.no_grad()
def check_other_sizes(proto: Any, model: nn.Module, spec: Specification) -> Check:
    """Compare a file with the torch model on inputs of twice the size.

    Args:
        proto: the file's `onnx.ModelProto`, with operators that ONNX Runtime supports.
        model: the torch model.
        spec: the specification that the model was prepared with.

    Raises:
        ArtifactError: the file does not run at that size, or computes something else.
    """
    larger = enlarged(spec)
    inputs = random_inputs(larger, 2)
    outputs = named_outputs(larger.run(model, moved(inputs, device_of(model))))
    expected = [tensor.detach().cpu() for tensor in outputs.values()]
    advice = "The traced network holds a size as a constant. Export without dynamic_sizes."
    try:
        found = run_session(exact_session(proto.SerializeToString()), feeds_of(proto, inputs))
    except ArtifactError as error:
        raise ArtifactError(f"The file does not run on inputs of shape {larger.shape}: {error} {advice}") from error
    agreements = [compare(*pair, None) for pair in zip(expected, found, strict=True)]
    # NaN is the worst, but compares as neither larger nor smaller.
    worst = max(agreements, key=lambda agreement: (math.isnan(agreement.deviation), agreement.deviation))
    if not worst.deviation <= _LARGEST_DEVIATION:
        raise ArtifactError(
            f"On inputs of shape {larger.shape}, the file does not compute what torch does: {worst}. {advice}"
        )
    return Check("other sizes", f"on inputs of shape {larger.shape}, {worst}")
