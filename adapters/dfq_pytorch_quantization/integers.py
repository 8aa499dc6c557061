"""Records the integers that a fake-quantized model computes with, for comparison with an exported file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree

from dfq_plugins.model_state import device_of
from dfq_plugins.quantization.onnx_agreement import TorchRun, TorchTensor
from dfq_pytorch_quantization.swap import quantized_modules

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from torch import nn


@torch.no_grad()
def torch_run(model: nn.Module, inputs: torch.Tensor) -> TorchRun:
    """Run a calibrated model and record what each input quantizer rounds.

    Args:
        model: a calibrated model.
        inputs: `(samples, *shape)`.
    """
    calls: list[TorchTensor] = []
    handles = [
        quantizer.register_forward_hook(_recorder(name, calls)) for name, quantizer in active_quantizers(model, "input")
    ]
    try:
        outputs = pytree.tree_leaves(model(inputs.to(device_of(model))))
    finally:
        for handle in handles:
            handle.remove()
    return TorchRun(tuple(_numpy(output) for output in outputs if isinstance(output, torch.Tensor)), tuple(calls))


@torch.no_grad()
def torch_weights(model: nn.Module) -> tuple[TorchTensor, ...]:
    """Return the fake-quantized weights of a calibrated model."""
    layers = dict(quantized_modules(model))
    found = []
    for name, quantizer in active_quantizers(model, "weight"):
        weight = quantizer(layers[name.rpartition(".")[0]].weight.detach())
        found.append(_tensor(f"{name.rpartition('.')[0]}.weight", quantizer, weight, weight))
    return tuple(found)


def active_quantizers(model: nn.Module, which: str) -> Iterator[tuple[str, Any]]:
    """Yield the name and quantizer of every quantized input or weight (`which`)."""
    for name, module in quantized_modules(model):
        quantizer = getattr(module, f"{which}_quantizer", None)
        if quantizer is not None and not quantizer._disabled:  # noqa: SLF001  (no public access)
            yield f"{name}.{which}_quantizer", quantizer


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
