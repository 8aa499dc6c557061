"""Guards: a private frozen copy, and a process that is left as it was found."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest
import torch
from torch import nn

from dfq_plugins.errors import ModelError
from dfq_plugins.model_state import device_of, frozen_copy, preserve_global_state


def test_the_copy_is_frozen_in_eval_mode_and_shares_nothing(tiny_network: nn.Module) -> None:
    tiny_network.train()
    copied = frozen_copy(tiny_network)
    assert not any(module.training for module in copied.modules())
    assert not any(parameter.requires_grad for parameter in copied.parameters())
    for before, after in zip(tiny_network.state_dict().values(), copied.state_dict().values(), strict=True):
        assert torch.equal(before, after)
        assert before.data_ptr() != after.data_ptr()
    assert all(module.training for module in tiny_network.modules())
    assert all(parameter.requires_grad for parameter in tiny_network.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_copy_computes_in_float32(tiny_network: nn.Module, dtype: torch.dtype) -> None:
    copied = frozen_copy(tiny_network.to(dtype))
    assert copied(torch.zeros(1, 3, 8, 8)).dtype == torch.float32
    assert next(tiny_network.parameters()).dtype == dtype


def test_what_cannot_be_copied_is_refused_with_the_way_round() -> None:
    network = nn.Linear(2, 2)
    network.lock = threading.Lock()
    with pytest.raises(ModelError, match=r"The model Linear cannot be copied \(.*remove whatever cannot be copied"):
        frozen_copy(network)


def test_devices() -> None:
    assert device_of(nn.Linear(1, 1, device="meta")) == torch.device("meta")
    assert device_of(nn.Sequential()) == torch.device("cpu")
    buffers_only = nn.BatchNorm1d(2, affine=False, device="meta")
    assert device_of(buffers_only) == torch.device("meta")


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002  the global generator is the subject


def seed() -> None:
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002  the global generator is the subject
    torch.manual_seed(1)


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("fails", [False, True])
def test_random_states_default_dtype_and_grad_mode_are_restored(fails: bool) -> None:
    seed()
    expected = draws()
    seed()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad():
            try:
                with preserve_global_state():
                    assert torch.get_default_dtype() == torch.float32
                    assert torch.is_grad_enabled()
                    draws()
                    torch.set_default_dtype(torch.bfloat16)
                    torch.set_grad_enabled(False)
                    if fails:
                        interrupt()
            except KeyboardInterrupt:
                assert fails
            assert torch.get_default_dtype() == torch.float64
            assert not torch.is_grad_enabled()
        assert torch.is_grad_enabled()
    finally:
        torch.set_default_dtype(torch.float32)
    assert draws() == expected


def test_gradients_work_inside_also_under_inference_mode() -> None:
    with torch.inference_mode():
        with preserve_global_state():
            variable = torch.ones(1, requires_grad=True)
            (variable * 2).backward()
            assert variable.grad is not None
        assert torch.is_inference_mode_enabled()
