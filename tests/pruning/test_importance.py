"""How much the answers change without a filter, and that those filters go first whose absence changes least."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from dfq_plugins.pruning import prune
from dfq_plugins.pruning.graph import FilterGroup, Member, find_groups
from dfq_plugins.pruning.importance import answer_changes
from dfq_plugins.pruning.selection import filter_multiply_adds

if TYPE_CHECKING:
    from dfq_plugins.types import InputSpec

BATCHES = [torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]


@pytest.fixture
def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(24, 5)).eval()


def changes(model: nn.Module, num_classes: int | None = 5) -> torch.Tensor:
    """Return the change of each filter of the convolution."""
    (group,) = find_groups(model, BATCHES[0][:2]).usable
    return answer_changes(model, [group], BATCHES, 4.0, 0, num_classes)[group.name]


def test_a_filter_that_nothing_reads_changes_nothing(network: nn.Module) -> None:
    with torch.no_grad():
        network[5].weight[:, 8:12] = 0.0  # the places of the third filter behind the flattening
    found = changes(network)
    assert found[2] == 0.0
    assert (found[[0, 1, 3, 4, 5]] > 0).all()


def test_a_filter_that_always_gives_the_same_changes_nothing(network: nn.Module) -> None:
    with torch.no_grad():
        network[1].weight[1], network[1].bias[1] = 0.0, 3.0
    assert changes(network)[1] == pytest.approx(0.0, abs=1e-12)


def test_it_predicts_the_divergence_of_a_small_change(network: nn.Module) -> None:
    """A filter moved a little toward its mean: the KL divergence grows as the square of the step times the change."""
    step, temperature = 0.02, 1.0
    network.double()
    inputs = torch.cat(BATCHES).double()
    (group,) = find_groups(network, inputs[:2]).usable
    drawn = [answer_changes(network, [group], [inputs], temperature, seed, 5)[group.name] for seed in range(50)]
    predicted = torch.stack(drawn).mean(0)
    with torch.no_grad():
        features = network[:4](inputs)
        whole = (network[4:](features) / temperature).log_softmax(1)
        for channel in range(6):
            moved = network[:3](inputs)
            mean = moved[:, channel].mean()
            moved[:, channel] += step * (mean - moved[:, channel])
            answers = (network[3:](moved) / temperature).log_softmax(1)
            divergence = nn.functional.kl_div(answers, whole, log_target=True, reduction="batchmean")
            assert divergence / step**2 == pytest.approx(float(predicted[channel]), rel=0.2)


def test_answers_that_are_no_classes_count_by_their_scaled_difference(network: nn.Module) -> None:
    model = nn.Sequential(*network[:3], nn.Conv2d(6, 2, 1)).eval()
    found = changes(model, num_classes=None)
    with torch.no_grad():
        model[3].weight *= 2
        model[3].bias *= 2
    torch.testing.assert_close(changes(model, num_classes=None), found)  # a share of the outputs' variance


def test_same_seed_same_changes_and_nothing_is_left_behind(network: nn.Module) -> None:
    first = changes(network)
    torch.testing.assert_close(changes(network), first, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_multiply_adds_of_a_filter_are_those_of_its_own_layer_and_of_its_readers() -> None:
    written = Member("first", outputs=True, places=tuple((place,) for place in range(4)), width=4)
    read = Member("second", outputs=False, places=tuple((place, place + 4) for place in range(4)), width=8)
    group = FilterGroup("first", (written, read), ())
    assert filter_multiply_adds(group, {"first": 400, "second": 80, "": 480}) == 120.0


@pytest.mark.parametrize(("importance", "stays"), [("answers", False), ("scale", True)])
def test_what_nothing_reads_goes_first(
    tiny_network: nn.Module, tiny_spec: InputSpec, importance: str, stays: bool
) -> None:
    with torch.no_grad():
        tiny_network.norm1.weight[0] = 100.0
        tiny_network.conv.weight[:, 0] = 0.0
        tiny_network.linear.weight[:, 0] = 0.0
    (group,) = find_groups(tiny_network, BATCHES[0][:2]).usable
    assert group.name == "stem"
    settings = {"steps": 1, "batch_size": 8, "num_evaluations": 1, "learning_rate": 0.0}
    options = {"importance": importance, "sparsity_steps": 0}
    run = prune(tiny_network, BATCHES[0], macs=0.9, spec=tiny_spec, options=options, training=settings)
    assert (run.model.norm1.weight.max() > 50) == stays
