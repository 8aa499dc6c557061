"""The state of the caller's process changes no byte of a set and no range of a quantized network."""

from __future__ import annotations

import contextlib
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dfq_plugins.quantization.run import run_quantization
from dfq_plugins.synthesis.run import synthesize
from tiny_networks import TinyNetwork, settle_batch_norm

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dfq_plugins.types import InputSpec

QUICK = {"iterations": 3, "precision": "float32", "compile": "never"}


@contextlib.contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
        assert torch.get_default_device() == torch.device("meta")
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def other_seeds() -> Iterator[None]:
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002  the global state is the subject
    torch.manual_seed(5)
    yield


def states() -> dict[str, Any]:
    return {
        "plain": contextlib.nullcontext(),
        "autocast": torch.autocast("cpu", torch.bfloat16),
        "default device": default_device(),
        "device context": torch.device("meta"),
        "seeds": other_seeds(),
    }


class Random(TinyNetwork):
    """Draws from the global random state, as Monte Carlo dropout does."""

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = super().forward(inputs + 0.1 * torch.randn_like(inputs))
        return outputs


def results(network: nn.Module, spec: InputSpec, batches: list[Tensor], **settings: Any) -> list[Tensor]:
    data = synthesize(network, spec, num_samples=8, options=QUICK, **settings)
    outputs = {"output": torch.stack([data[index].outputs["output"] for index in range(8)])}
    run = run_quantization(network, batches, calibrator="pytorch-quantization", spec=spec)
    amax = [module._amax for _, module in run.model.named_modules() if getattr(module, "_amax", None) is not None]
    return [data.inputs(), *outputs.values(), *amax]


@pytest.mark.parametrize("kind", [TinyNetwork, Random])
@pytest.mark.parametrize("state", [name for name in states() if name != "plain"])
def test_the_callers_modes_change_nothing(
    state: str, kind: type[TinyNetwork], tiny_spec: InputSpec, tiny_batches: list[Tensor]
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = settle_batch_norm(kind(), torch.randn(64, 3, 8, 8).clamp(-2, 2))
        expected = results(network, tiny_spec, tiny_batches)
        with states()[state]:
            found = results(network, tiny_spec, tiny_batches)
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


def meddling(_event: object) -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002  the global state is the subject
    torch.use_deterministic_algorithms(mode=True, warn_only=True)


def test_a_listener_that_sets_torchs_modes_changes_nothing(
    tiny_network: nn.Module, tiny_spec: InputSpec, tiny_batches: list[Tensor]
) -> None:
    expected = results(tiny_network, tiny_spec, tiny_batches)
    found = results(tiny_network, tiny_spec, tiny_batches, listeners=[meddling])
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
    assert torch.get_default_dtype() == torch.float32
    assert not torch.are_deterministic_algorithms_enabled()
