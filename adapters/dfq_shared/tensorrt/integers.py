"""Records the integers that a fake-quantized model computes with, for comparison with an exported file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dfq_plugins.inputs import cloned, moved, run_network
from dfq_plugins.model_state import device_of, hooked
from dfq_plugins.network.outputs import named_outputs
from dfq_plugins.quantization.onnx_agreement import TorchRun, TorchTensor
from dfq_shared.tensorrt.markers import active_quantizers, is_weight, quantized_weights

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from torch import nn

    from dfq_plugins.types import Inputs, Specification


@torch.no_grad()
def torch_run(model: nn.Module, inputs: Inputs, spec: Specification | None = None) -> TorchRun:
    """Run a calibrated model and record what each input quantizer rounds.

    Args:
        model: a calibrated model.
        inputs: `(samples, *shape)`.
        spec: says how the model takes several inputs; None means by keywords.
    """
    calls: list[TorchTensor] = []
    hooks = (
        quantizer.register_forward_hook(_recorder(name, calls))
        for name, quantizer in active_quantizers(model).items()
        if not is_weight(name)
    )
    with hooked(hooks):
        outputs = named_outputs(run_network(model, moved(cloned(inputs), device_of(model)), spec))
    return TorchRun(tuple(map(_numpy, outputs.values())), tuple(calls))


@torch.no_grad()
def torch_weights(model: nn.Module) -> tuple[TorchTensor, ...]:
    """Return the fake-quantized weights of a calibrated model."""
    quantizers = active_quantizers(model)
    return tuple(
        _tensor(f"{name.rpartition('.')[0]}.weight", quantizers[name], weight, weight)
        for name, weight in quantized_weights(model).items()
    )


def _recorder(name: str, calls: list[TorchTensor]) -> Callable[..., None]:
    def record(quantizer: Any, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        calls.append(_tensor(name, quantizer, arguments[0], output))

    return record


def _tensor(name: str, quantizer: Any, values: torch.Tensor, rounded: torch.Tensor) -> TorchTensor:
    highest = 2 ** (quantizer.num_bits - 1 + int(quantizer.unsigned)) - 1
    lowest = 0 if quantizer.unsigned else -highest - (not quantizer.narrow_range)
    step = _numpy(quantizer.amax) / highest
    return TorchTensor(name, _numpy(values), step, lowest, highest, rounded=_numpy(rounded))


def _numpy(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = tensor.detach().float().cpu().numpy().copy()
    return array
