"""The objective sees the input itself, the whole set where it is asked to, and eps on both sides."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfq_plugins.statistics.batch_norm import stored_statistics
from dfq_plugins.synthesis.objective import InversionObjective
from dfq_plugins.synthesis.options import InversionOptions
from dfq_plugins.synthesis.run import synthesize
from dfq_plugins.types import InputSpec


def test_the_mean_of_a_standardized_input_counts_where_the_first_layer_ignores_it() -> None:
    layer = nn.Conv2d(1, 4, 3, bias=False)
    with torch.no_grad():
        layer.weight -= layer.weight.mean((1, 2, 3), keepdim=True)
    network = nn.Sequential(layer, nn.BatchNorm2d(4)).eval().requires_grad_(requires_grad=False)
    spec = InputSpec((1, 8, 8), (0.5,), (0.25,), (0.0, 1.0))
    objective = InversionObjective(network, spec, InversionOptions(precision="float32"))
    inputs, labels = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(32).long()
    centered, shifted = (float(objective.evaluate_once(part, labels, None)) for part in (inputs, inputs + 1))
    assert shifted > centered + 0.1


@pytest.mark.parametrize("statistics", ["batch", "set"])
def test_the_other_batches_count_only_with_statistics_of_the_set(
    statistics: str, tiny_network: nn.Module, tiny_spec: InputSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, seen = InversionObjective.__call__, []

    def watched(self: InversionObjective, inputs: Any, labels: Tensor, rest: Any, maps: Any = None) -> Any:
        seen.append(rest is not None and rest[1] < 1)
        return step(self, inputs, labels, rest, maps)

    monkeypatch.setattr(InversionObjective, "__call__", watched)
    options = {"iterations": 2, "precision": "float32", "compile": "never", "statistics": statistics, "step_samples": 8}
    synthesize(tiny_network, tiny_spec, num_samples=16, options=options)
    assert any(seen) == (statistics == "set")


def test_eps_is_added_on_both_sides(tiny_network: nn.Module) -> None:
    tiny_network.norm1.eps = 2.0
    stored = stored_statistics(tiny_network)
    assert float(stored.divergence(stored.mean, stored.var).abs().max()) == 0
    assert float(stored.surprise(stored.mean, stored.var).abs().max()) == 0
    wider = stored.surprise(stored.mean, stored.var * 2)[:8]
    ratio = (tiny_network.norm1.running_var * 2 + 2) / (tiny_network.norm1.running_var + 2)
    torch.testing.assert_close(wider, (ratio - 1 - ratio.log()) / 2, rtol=1e-4, atol=1e-6)
