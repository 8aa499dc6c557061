"""Networks that frameworks once computed wrongly without a word, in each framework."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from dfq_plugins.quantization.run import run_quantization
from tiny_networks import TiedNetwork, settle_batch_norm

if TYPE_CHECKING:
    from pathlib import Path

    from dfq_plugins.types import InputSpec

FRAMEWORKS = ("torch-ao", "pytorch-quantization", "brevitas")


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_batch_norm_behind_one_of_two_layers_that_share_a_weight(
    framework: str, tiny_spec: InputSpec, tiny_batches: list[torch.Tensor], tmp_path: Path
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = settle_batch_norm(TiedNetwork(), torch.randn(64, 3, 8, 8).clamp(-2, 2))
    run = run_quantization(network, tiny_batches, calibrator=framework, spec=tiny_spec, output=tmp_path)
    assert run.output_agreement[0].decibels > 25
    assert run.artifacts
    assert not run.rejected
