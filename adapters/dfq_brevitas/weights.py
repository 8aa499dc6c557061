"""Chooses the quantized weights with the calibration data: Brevitas's GPTQ and learned rounding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dfq_brevitas.bias import is_weight_layer
from dfq_brevitas.framework import (
    GraphModule,
    LearnedRoundHardSigmoid,
    LearnedRoundSte,
    QuantTensor,
    gptq_mode,
    quantization_status_manager,
)
from dfq_plugins.inputs import run_network
from dfq_plugins.model_state import hooked

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dfq_plugins.types import Inputs, Specification

_LEARNING_RATE = 1e-2
_REGULARIZATION = 0.01
_BATCH = 32
_WARM_UP = 0.2
_EXPONENTS = (20.0, 2.0)
_ZETA, _GAMMA = 1.1, -0.1


def apply_gptq(model: GraphModule, batches: Iterable[Inputs], spec: Specification | None = None) -> None:
    """Quantize the weights column by column, each time updating the rest (GPTQ); one pass over the data per layer."""
    with torch.no_grad(), gptq_mode(model) as mode:
        for _ in range(mode.num_layers):
            for inputs in batches:
                run_network(mode.model, inputs, spec)
            mode.update()
    # gptq_mode leaves its bound method as the class's forward, which a copy of the model would inherit.
    model.recompile()


def learn_rounding(model: nn.Module, batches: Iterable[Inputs], steps: int, spec: Specification | None = None) -> None:
    """Learn layer by layer whether each weight is rounded up or down, with Brevitas's `LearnedRoundSte`.

    AdaRound (Nagel et al. 2020, "Up or Down?"): minimize `||Q(W) x - W x||^2 + lambda * sum(1 - |2 h(v) - 1|^beta)`,
    with h the hard sigmoid of the learned v, and beta falling from 20 to 2 after a warm-up of a fifth of the steps.
    """
    rng = torch.Generator().manual_seed(0)
    for layer in [module for module in model.modules() if is_weight_layer(module)]:
        inputs, outputs = _record(model, layer, batches, spec)
        with torch.enable_grad():
            _learn_layer(layer, inputs, outputs, steps, rng)


def _record(
    model: nn.Module, layer: Any, batches: Iterable[Inputs], spec: Specification | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the layer's inputs in the quantized network, and its float outputs for them."""
    found: list[torch.Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _module, args: found.append(_plain(args[0]).detach()))
    with torch.no_grad(), hooked([hook]):
        for inputs in batches:
            run_network(model, inputs, spec)
    seen = torch.cat(found)
    with torch.no_grad(), _float(layer):
        return seen, torch.cat([_plain(layer(part)) for part in torch.split(seen, _BATCH)])


def _learn_layer(layer: Any, inputs: torch.Tensor, outputs: torch.Tensor, steps: int, rng: torch.Generator) -> None:
    original, quantizer = layer.weight.detach().clone(), layer.weight_quant.tensor_quant.int_quant
    plain_rounding = quantizer.float_to_int_impl
    rounding = _insert_rounding(layer)
    optimizer = torch.optim.Adam([rounding.value], lr=_LEARNING_RATE)
    with quantization_status_manager(layer, disable_bias_quant=True, is_training=False):
        for step in range(steps):
            chosen = torch.randint(len(inputs), (min(_BATCH, len(inputs)),), generator=rng)
            optimizer.zero_grad()
            error = (_plain(layer(inputs[chosen])) - outputs[chosen]).square().mean()
            (error + _rounding_penalty(rounding, step / steps)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    _bake(layer, original)
    quantizer.float_to_int_impl = plain_rounding
    layer.zero_grad(set_to_none=True)


def _insert_rounding(layer: Any) -> Any:
    """Give the layer's weight quantizer learned rounding, initialized to plain rounding."""
    with torch.no_grad():
        scaled = layer.weight / layer.quant_weight().scale
        share = (scaled - scaled.floor()).clamp(1e-4, 1 - 1e-4)
        start = -torch.log((_ZETA - _GAMMA) / (share - _GAMMA) - 1)  # inverse of the hard sigmoid
    learned = LearnedRoundSte(LearnedRoundHardSigmoid(), start, nn.Identity())
    layer.weight_quant.tensor_quant.int_quant.float_to_int_impl = learned
    return learned


def _rounding_penalty(rounding: Any, progress: float) -> torch.Tensor:
    if progress < _WARM_UP:
        return torch.zeros(())
    highest, lowest = _EXPONENTS
    exponent = lowest + (highest - lowest) * (1 - (progress - _WARM_UP) / (1 - _WARM_UP))
    share = rounding.learned_round_impl(rounding.value)
    penalty: torch.Tensor = _REGULARIZATION * (1 - (2 * share - 1).abs().pow(exponent)).mean()
    return penalty


def _bake(layer: Any, original: torch.Tensor) -> None:
    """Store the learned weights on their grid, which plain rounding does not change; keep the float ones too."""
    with torch.no_grad():
        learned = layer.quant_weight().value.clone()
        layer.weight.copy_(learned)
    layer.register_buffer("weight_orig", original, persistent=False)


def _float(layer: nn.Module) -> Any:
    off = {"disable_act_quant": True, "disable_weight_quant": True, "disable_bias_quant": True}
    return quantization_status_manager(layer, is_training=False, **off)


def _plain(value: Any) -> torch.Tensor:
    plain: torch.Tensor = value.value if isinstance(value, QuantTensor) else value
    return plain
