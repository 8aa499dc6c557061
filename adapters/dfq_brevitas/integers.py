"""Records the integers that a Brevitas model computes with, for comparison with an exported file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dfq_brevitas.bias import is_weight_layer
from dfq_brevitas.framework import ActQuantProxyFromInjectorBase
from dfq_brevitas.qonnx_lowering import integer_range
from dfq_plugins.inputs import cloned, run_network
from dfq_plugins.model_state import hooked
from dfq_plugins.network.outputs import named_outputs
from dfq_plugins.quantization.onnx_agreement import TorchRun, TorchTensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from torch import nn

    from dfq_plugins.types import Inputs, Specification


@torch.no_grad()
def torch_run(model: nn.Module, inputs: Inputs, spec: Specification | None = None) -> TorchRun:
    """Run a converted model and record what each activation quantizer rounds.

    Args:
        model: a converted graph on the CPU.
        inputs: `(samples, *shape)`.
        spec: says how the model takes several inputs; None means by keywords.
    """
    calls: list[TorchTensor] = []
    hooks = (
        proxy.fused_activation_quant_proxy.tensor_quant.register_forward_hook(_recorder(name, proxy, calls))
        for name, proxy in _activation_quantizers(model)
    )
    with hooked(hooks):
        outputs = named_outputs(run_network(model, cloned(inputs), spec))
    return TorchRun(tuple(map(_numpy, outputs.values())), tuple(calls))


@torch.no_grad()
def torch_weights(model: nn.Module) -> tuple[TorchTensor, ...]:
    """Return the weights that a converted model quantizes; binary ones as -1 and +1."""
    return tuple(
        _weight(name, layer)
        for name, layer in model.named_modules()
        if is_weight_layer(layer) and layer.weight_quant.is_quant_enabled
    )


def _weight(name: str, layer: Any) -> TorchTensor:
    quantized = layer.quant_weight()
    bits = int(layer.weight_quant.bit_width())
    signed, narrow = bool(layer.weight_quant.is_signed), bool(layer.weight_quant.is_narrow_range)
    lowest, highest = (-1, 1) if bits == 1 else integer_range(bits, signed=signed, narrow=narrow)
    values, scale = _numpy(quantized.value), _numpy(quantized.scale)
    return TorchTensor(f"{name}.weight", values, scale, lowest, highest)


def _activation_quantizers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if isinstance(module, ActQuantProxyFromInjectorBase) and module.is_quant_enabled:
            yield name.removesuffix(".act_quant"), module


def _recorder(name: str, proxy: Any, calls: list[TorchTensor]) -> Callable[..., None]:
    def record(_module: nn.Module, arguments: tuple[torch.Tensor, ...], output: tuple[torch.Tensor, ...]) -> None:
        rounded, scale, zero_point, bit_width = output
        lowest, highest = integer_range(
            int(bit_width), signed=bool(proxy.is_signed), narrow=bool(proxy.is_narrow_range)
        )
        zero = float(zero_point.reshape(-1)[0])
        calls.append(
            TorchTensor(name, _numpy(arguments[0]), _numpy(scale), lowest, highest, zero, rounded=_numpy(rounded))
        )

    return record


def _numpy(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = tensor.detach().cpu().numpy().copy()
    return array
