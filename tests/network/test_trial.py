"""Networks that divide by nothing or return NaN are refused before any work."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from dfq_plugins.errors import ModelError
from dfq_plugins.network.trial import check_finite, require_numbers
from dfq_plugins.quality.run import inspect
from dfq_plugins.quantization.run import run_quantization
from tiny_networks import TinyNetwork

if TYPE_CHECKING:
    from dfq_plugins.types import InputSpec


class Undefined(TinyNetwork):
    """Returns NaN for samples whose first value is positive."""

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = super().forward(inputs)
        return torch.where(inputs[:, 0, 0, 0, None] > 0, math.nan, logits)


@pytest.mark.parametrize(("variance", "eps"), [(-1.0, 1e-5), (0.0, 0.0)])
def test_a_batch_norm_without_a_positive_variance(tiny_network: TinyNetwork, variance: float, eps: float) -> None:
    check_finite(tiny_network)
    tiny_network.norm2.running_var[3], tiny_network.norm2.eps = variance, eps
    with pytest.raises(ModelError, match=r"must be positive, but is not in \['norm2'\]"):
        check_finite(tiny_network)


def test_nan_is_counted_and_infinity_is_a_number(tiny_spec: InputSpec) -> None:
    samples = torch.ones(5, 3, 8, 8)
    samples[:2] = -1
    with pytest.raises(ModelError, match="'output' of Undefined holds NaN for 3 of 5 samples"):
        require_numbers(Undefined().eval(), samples, tiny_spec)
    require_numbers(nn.Threshold(2.0, math.inf), samples, tiny_spec)


@pytest.mark.parametrize("calibrator", ["torch-ao", "pytorch-quantization", "brevitas"])
def test_no_framework_is_given_a_network_that_returns_nan(calibrator: str, tiny_spec: InputSpec) -> None:
    with pytest.raises(ModelError, match="holds NaN for 8 of 8 samples"):
        run_quantization(Undefined(), torch.ones(8, 3, 8, 8), calibrator=calibrator, spec=tiny_spec)


def test_an_inspection_refuses_it(tiny_spec: InputSpec) -> None:
    with pytest.raises(ModelError, match="holds NaN for 8 of 8 samples"):
        inspect(torch.ones(8, 3, 8, 8), Undefined(), spec=tiny_spec)
