"""Pruning: which filters go together, their scales, selection and removal, masks and tickets, and what is refused."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from dfq_plugins.distillation.options import TrainingOptions
from dfq_plugins.distillation.state import capture
from dfq_plugins.errors import DataError, ModelError, PluginError, UsageError
from dfq_plugins.network.cost import layer_multiply_adds, measure_cost
from dfq_plugins.network.digest import model_digest
from dfq_plugins.network.load import load_network
from dfq_plugins.network.masks import bake, masks_of
from dfq_plugins.pruning import PruneRun, PruneTrainingOptions, PruningOptions, Ticket, prune
from dfq_plugins.pruning.graph import find_groups, remove_filters, same_answers, zero_filters
from dfq_plugins.pruning.magnitude import prune_weights
from dfq_plugins.pruning.recentering import batch_statistics, recenter
from dfq_plugins.pruning.run import _Job
from dfq_plugins.pruning.scales import group_scales, map_widths, penalty_for, shared_scales
from dfq_plugins.pruning.selection import remaining_multiply_adds, select_by_target, select_by_threshold
from dfq_plugins.types import InputSpec
from tiny_networks import TiedNetwork

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dfq_plugins.types import ProgressEvent

QUICK = {"steps": 12, "batch_size": 16, "num_evaluations": 3, "teacher_precision": "float32"}
SAMPLE = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(7))


@pytest.fixture
def inputs() -> torch.Tensor:
    return torch.randn(60, 3, 8, 8, generator=torch.Generator().manual_seed(3)).clamp(-2, 2)


@pytest.fixture
def run(tiny_network: nn.Module, tiny_spec: InputSpec, inputs: torch.Tensor) -> Callable[..., PruneRun]:
    """Prune the tiny network on noise in a few steps, where nothing else is given."""

    def pruned(model: nn.Module | None = None, data: Any = inputs, **settings: Any) -> PruneRun:
        settings["training"] = {**QUICK, **settings.pop("training", {})}
        settings["options"] = {"sparsity_steps": 6, **settings.pop("options", {})}
        settings = {"spec": tiny_spec, **settings}
        return prune(tiny_network if model is None else model, data, **settings)

    return pruned


class Preactivated(nn.Module):
    """BatchNorm before each convolution, as in wide residual networks, with a depthwise layer and a flattening."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm1, self.conv1 = nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3, padding=1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.norm3, self.depthwise = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=8)
        self.pool, self.linear = nn.AdaptiveAvgPool2d(2), nn.Linear(32, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.stem(inputs)
        hidden = hidden + self.conv2(self.norm2(self.conv1(self.norm1(hidden).relu())).relu())
        return self.linear(self.pool(self.depthwise(self.norm3(hidden).relu())).flatten(1))


class Cut(nn.Module):
    """A convolution and a classifier with an operation between them."""

    def __init__(self, operation: Callable[[torch.Tensor], torch.Tensor], last: Any = None) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.conv, self.after = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
        self.linear = nn.Linear(8, 4)
        self.operation, self.last = operation, last

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.operation(self.norm(self.stem(inputs)).relu())
        logits = self.linear(self.after(self.conv(hidden)).relu().mean((2, 3)))
        return logits if self.last is None else self.last(logits)


def drawn(network: nn.Module) -> nn.Module:
    """Give every BatchNorm scales, shifts and statistics that differ from channel to channel."""
    rng = torch.Generator().manual_seed(5)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                value.copy_(torch.rand(value.shape, generator=rng) + 0.1)
    return network.eval()


def drawn_but(network: nn.Module) -> nn.Module:
    """Draw only those BatchNorms that have scales."""
    affine = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d) and module.affine]
    for module in affine:
        drawn(module)
    return network.eval()


class TestGroups:
    def test_what_is_added_up_goes_together(self, tiny_network: nn.Module) -> None:
        groups = find_groups(tiny_network, SAMPLE)
        (group,) = groups.usable
        assert {(member.name, member.outputs) for member in group.members} == {
            ("stem", True), ("norm1", True), ("conv", False), ("conv", True), ("norm2", True), ("linear", False)
        }  # fmt: skip
        assert set(group.norms) == {"norm1", "norm2"}
        assert groups.left == (("linear", "its filters are the network's outputs"),)

    def test_preactivation_depthwise_and_flattening(self) -> None:
        network = drawn(Preactivated())
        groups = {group.name: group for group in find_groups(network, SAMPLE).usable}
        stream, inner = groups["depthwise"] if "depthwise" in groups else groups["stem"], groups["conv1"]
        assert {"norm1", "norm3"} == set(stream.norms)
        assert inner.norms == ("norm2",)
        linear = next(member for member in stream.members if member.name == "linear")
        assert linear.places[1] == (4, 5, 6, 7)
        assert linear.width == 32

    @pytest.mark.parametrize("network", ["tiny", "preactivated"])
    def test_removal_answers_as_zeros_do(self, network: str, tiny_network: nn.Module) -> None:
        model = tiny_network if network == "tiny" else drawn(Preactivated())
        groups = find_groups(model, SAMPLE).usable
        removed = {group.name: [1, 4] for group in groups}
        zeroed, shorter = copy.deepcopy(model), copy.deepcopy(model)
        zero_filters(zeroed, groups, removed)
        remove_filters(shorter, SAMPLE, groups, removed)
        assert same_answers(zeroed, shorter, SAMPLE)
        assert not same_answers(model, shorter, SAMPLE)
        assert shorter.stem.out_channels == 6  # type: ignore[union-attr]
        assert model.stem.out_channels == 8  # type: ignore[union-attr]

    def test_concatenation(self) -> None:
        class Branches(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.left, self.right = (
                    nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()) for _ in range(2)
                )
                self.linear = nn.Linear(12, 4)

            def forward(self, inputs: torch.Tensor) -> torch.Tensor:
                return self.linear(torch.cat([self.left(inputs), self.right(inputs)], 1).mean((2, 3)))

        network = drawn(Branches())
        groups = find_groups(network, SAMPLE).usable
        assert {group.name for group in groups} == {"left.0", "right.0"}
        costs = layer_multiply_adds(network, InputSpec((3, 8, 8))) | {
            "": measure_cost(network, InputSpec((3, 8, 8))).macs
        }
        removed = {"left.0": [0, 1], "right.0": [5]}
        told = remaining_multiply_adds(groups, removed, costs)
        remove_filters(network, SAMPLE, groups, removed)
        assert measure_cost(network, InputSpec((3, 8, 8))).macs == round(told)

    @pytest.mark.parametrize(
        ("operation", "name"),
        [
            (lambda hidden: hidden.flip(1), "Flip"),
            (lambda hidden: hidden.roll(3, 1), "Roll"),
            (torch.sigmoid, "Sigmoid"),
        ],
    )
    def test_what_moves_channels_is_left_alone_and_named(self, operation: Any, name: str) -> None:
        groups = find_groups(drawn(Cut(operation)), SAMPLE)
        assert [group.name for group in groups.usable] == ["conv"]
        assert ("stem", f"{name} moves or changes its channels") in groups.left

    def test_padding_of_channels(self, shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.syspath_prepend(shared_data)
        networks = __import__("networks")
        groups = find_groups(networks.build("resnet20_cifar10"), torch.randn(2, 3, 32, 32))
        assert len(groups.usable) == 9
        assert dict(groups.left)["conv1"] == "ConstantPadNd moves or changes its channels"

    def test_one_slope_for_all_channels_and_a_parameter_of_its_own(self) -> None:
        class Scaled(Cut):
            def __init__(self) -> None:
                super().__init__(nn.PReLU())
                self.factor = nn.Parameter(torch.linspace(0.5, 1.5, 8).view(1, 8, 1, 1))

            def forward(self, inputs: torch.Tensor) -> torch.Tensor:
                hidden = self.operation(self.norm(self.stem(inputs))) * self.factor
                return self.linear(self.after(self.conv(hidden)).relu().mean((2, 3)))

        network = drawn(Scaled())
        groups = find_groups(network, SAMPLE).usable
        removed = {group.name: [0, 3] for group in groups}
        zeroed, shorter = copy.deepcopy(network), copy.deepcopy(network)
        zero_filters(zeroed, groups, removed)
        remove_filters(shorter, SAMPLE, groups, removed)
        assert same_answers(zeroed, shorter, SAMPLE)
        assert {"stem", "conv"} == {group.name for group in groups}

    def test_batch_norm_without_scales(self) -> None:
        network = Cut(nn.BatchNorm2d(8, affine=False))
        assert dict(find_groups(drawn_but(network), SAMPLE).left)["stem"] == "its BatchNorm has no scales"

    def test_layers_to_keep(self) -> None:
        groups = find_groups(drawn(Preactivated()), SAMPLE, keep=("norm2",))
        assert dict(groups.left)["conv1"] == "excluded by the option keep"

    def test_layers_that_share_their_weights_are_left_alone_and_named(self) -> None:
        with pytest.raises(ModelError, match=r"(conv|again) shares its weights with (conv|again)"):
            find_groups(drawn(TiedNetwork()), SAMPLE)

    def test_a_layer_with_two_names_shares_nothing(self, tiny_network: nn.Module) -> None:
        tiny_network.alias = tiny_network.conv
        assert len(find_groups(tiny_network, SAMPLE).usable) == 1

    def test_nothing_to_prune(self) -> None:
        plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 2))
        with pytest.raises(
            ModelError, match=r"No filter of Sequential can be removed \(.*0: no BatchNorm follows it, so"
        ):
            find_groups(plain, SAMPLE)


class TestTracing:
    def test_a_cut_graph_is_named_by_the_layer_after_it(self) -> None:
        with pytest.raises(ModelError, match=r"the input of 'conv' has no gradient.*detach\(\)"):
            find_groups(Cut(torch.Tensor.detach), SAMPLE)

    def test_an_answer_without_gradient(self) -> None:
        with pytest.raises(ModelError, match="its output has no gradient, because its last operation"):
            find_groups(Cut(nn.Identity(), last=torch.Tensor.detach), SAMPLE)

    def test_an_operation_that_fails_is_shown_by_its_line(self) -> None:
        with pytest.raises(ModelError, match=r"Cut cannot be traced for pruning at .*test_run\.py:\d+: .*Can't call"):
            find_groups(Cut(lambda hidden: torch.from_numpy(np.tanh(hidden.numpy()))), SAMPLE)

    def test_what_torch_pruning_cannot_follow_is_named(self) -> None:
        def shuffle(hidden: torch.Tensor) -> torch.Tensor:
            parts = hidden.view(hidden.shape[0], 2, 4, *hidden.shape[2:]).transpose(1, 2)
            return parts.reshape(hidden.shape[0], -1, *hidden.shape[2:])

        groups = find_groups(drawn(Cut(shuffle)), SAMPLE)
        assert "Transpose" in dict(groups.left)["stem"]

    def test_without_the_library(self, run: Callable[..., PruneRun], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torch_pruning", None)
        with pytest.raises(PluginError, match=r'not installed. Run: pip install "dfq-plugins\[pruning\]"'):
            run(macs=0.5)


class TestScales:
    def test_a_shared_scale_changes_nothing_until_it_is_trained(self, tiny_network: nn.Module) -> None:
        drawn(tiny_network)
        groups = find_groups(tiny_network, SAMPLE).usable
        before = tiny_network(SAMPLE)
        means = group_scales(tiny_network, groups)["stem"]
        with shared_scales(tiny_network, groups) as scales:
            assert torch.allclose(scales["stem"], means)
            assert torch.allclose(tiny_network(SAMPLE), before, atol=1e-6)
            with torch.no_grad():
                scales["stem"][2] = 0.0
            trained = tiny_network(SAMPLE)
        assert tiny_network.norm1.weight[2] == 0  # type: ignore[index, union-attr]
        assert tiny_network.norm2.weight[2] == 0  # type: ignore[index, union-attr]
        assert torch.allclose(tiny_network(SAMPLE), trained)
        assert set(dict(tiny_network.named_parameters())) == set(dict(tiny_network.state_dict())) - {
            name for name, _ in tiny_network.named_buffers()
        }
        assert all(parameter.requires_grad for parameter in tiny_network.parameters())

    def test_a_scale_is_the_root_mean_square_over_its_layers(self, tiny_network: nn.Module) -> None:
        drawn(tiny_network)
        first, second = (module.weight.detach().numpy() for module in (tiny_network.norm1, tiny_network.norm2))  # type: ignore[union-attr, operator]
        found = group_scales(tiny_network, find_groups(tiny_network, SAMPLE).usable)["stem"]
        np.testing.assert_allclose(found.numpy(), np.sqrt((first**2 + second**2) / 2), rtol=1e-6)

    def test_the_penalty(self) -> None:
        network = drawn(Preactivated())
        groups = find_groups(network, SAMPLE).usable
        assert map_widths(network, groups, SAMPLE)["conv1"] == 8.0
        options = PruningOptions(scale_penalty=2.0, weight_penalty=0.5, penalty_warm_up=0.4)
        with shared_scales(network, groups) as scales:
            penalty = penalty_for(network, groups, scales, SAMPLE, options)
            penalty.progress = 0.1
            sizes = sum(float(scale.detach().abs().sum()) / 8 for scale in scales.values())
            squares = sum(
                float(parameter.detach().square().sum())
                for name, parameter in network.named_parameters()
                if parameter.requires_grad and not any(parameter is scale for scale in scales.values())
            )
            assert float(penalty.value().detach()) == pytest.approx(0.25 * 2.0 * sizes + 0.25 * squares, rel=1e-5)
            assert len(penalty.others) == 10  # five weights, two biases, and the shifts of three BatchNorms
            assert len(scales) == 2
            chosen = {name: [1] for name in scales}
            alone = penalty_for(
                network, groups, scales, SAMPLE, PruningOptions(scale_penalty=1.0, weight_penalty=0.0), chosen
            )
            alone.progress = 1.0
            assert float(alone.value().detach()) == pytest.approx(
                sum(float(scale[1].detach().abs()) / 8 for scale in scales.values())
            )

    def test_the_penalty_shrinks_scales(self, run: Callable[..., PruneRun], tiny_network: nn.Module) -> None:
        whole = group_scales(tiny_network, find_groups(tiny_network, SAMPLE).usable)["stem"]
        options = {"sparsity_steps": 20, "scale_penalty": 100.0, "penalty_warm_up": 0.0, "press": "all"}
        result = run(macs=0.99, options=options, training={"steps": 1, "learning_rate": 0.05, "warm_up": 0.0})
        assert float(result.model.norm1.weight.detach().abs().mean()) < 0.8 * float(whole.mean())  # type: ignore[union-attr, operator]
        assert [point.step for point in result.sparsity_history][-1] == 20


class TestSelection:
    def setup_method(self) -> None:
        self.network = drawn(Preactivated())
        self.groups = find_groups(self.network, SAMPLE).usable
        self.scales = {group.name: torch.linspace(0.0, 1.0, group.size) + 0.01 for group in self.groups}
        self.costs = layer_multiply_adds(self.network, InputSpec((3, 8, 8))) | {
            "": measure_cost(self.network, InputSpec((3, 8, 8))).macs
        }

    def test_by_threshold(self) -> None:
        removed = select_by_threshold(self.groups, self.scales, 0.25)
        assert removed["conv1"] == [0, 1]
        assert all(self.scales[name][channels[-1] + 1] >= 0.25 for name, channels in removed.items())

    def test_a_threshold_that_empties_a_layer(self) -> None:
        self.scales["conv1"] = torch.full((6,), 0.05)
        with pytest.raises(
            UsageError,
            match=r"The threshold 0.1 would empty the layer 'conv1': the largest scale of its 6 filters is 0.05",
        ):
            select_by_threshold(self.groups, self.scales, 0.1)

    @pytest.mark.parametrize("target", [0.9, 0.7, 0.5])
    def test_by_target(self, target: float) -> None:
        removed = select_by_target(self.groups, self.scales, self.costs, target, 0.1)
        told = remaining_multiply_adds(self.groups, removed, self.costs)
        remove_filters(self.network, SAMPLE, self.groups, removed)
        measured = measure_cost(self.network, InputSpec((3, 8, 8))).macs
        assert measured == round(told)
        assert 0.75 * target < measured / self.costs[""] <= target
        largest_gone = max(float(self.scales[name][max(gone)]) for name, gone in removed.items() if gone)
        for group in self.groups:  # no smaller one is left, but for those that each layer keeps
            kept = sorted(set(range(group.size)) - set(removed[group.name]))
            assert float(self.scales[group.name][kept[0]]) >= largest_gone or len(kept) == 1

    def test_a_target_that_empties_layers(self) -> None:
        with pytest.raises(UsageError, match=r"Keeping only 1% of the MACs would empty layers: .*'conv1'"):
            select_by_target(self.groups, self.scales, self.costs, 0.01, 0.1)


class TestRecentering:
    def test_statistics_agree_with_numpy(self, tiny_network: nn.Module) -> None:
        batch = torch.randn(32, 3, 8, 8)
        mean, variance = batch_statistics(tiny_network, [batch])["norm1"]
        entered = tiny_network.stem(batch).detach().numpy()  # type: ignore[operator]
        np.testing.assert_allclose(mean.numpy(), entered.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(variance.numpy(), entered.var((0, 2, 3), ddof=1), rtol=1e-4)

    def test_only_what_the_pruning_changes_is_corrected(self) -> None:
        network = drawn(Preactivated())
        groups = find_groups(network, SAMPLE).usable
        batches, removed = [torch.randn(64, 3, 8, 8)], {"conv1": [0, 2]}
        shorter = copy.deepcopy(network)
        remove_filters(shorter, SAMPLE, groups, removed)
        recenter(shorter, network, groups, removed, batches)
        assert torch.allclose(shorter.norm1.running_mean, network.norm1.running_mean)  # type: ignore[arg-type, union-attr]
        kept = [1, 3, 4, 5]
        assert torch.allclose(shorter.norm2.running_var, network.norm2.running_var[kept])  # type: ignore[arg-type, index, union-attr]
        (before,), (after,) = ([batch_statistics(model, batches)["norm3"]] for model in (network, shorter))
        expected = network.norm3.running_mean + after[0] - before[0]  # type: ignore[operator, union-attr]
        assert torch.allclose(shorter.norm3.running_mean, expected)  # type: ignore[arg-type, union-attr]


class TestFilters:
    def test_the_record_tells_everything(self, run: Callable[..., PruneRun], tmp_path: Path) -> None:
        events: list[ProgressEvent] = []
        result = run(macs=0.7, output=tmp_path / "out", listeners=[events.append])
        assert result.method == "filters"
        assert result.after.macs <= 0.7 * result.before.macs
        assert result.after.parameters < result.before.parameters
        (layer,) = result.layers
        assert (layer.name, layer.before) == ("stem", 8)
        assert result.model.stem.out_channels == layer.after < 8  # type: ignore[union-attr]
        assert result.left == (("linear", "its filters are the network's outputs"),)
        assert [event.stage for event in events] == ["sparsify"] * 6 + ["finetune"] * 12
        assert isinstance(result.training, PruneTrainingOptions)
        assert (result.training.kl_weight, result.training.symmetrized_kl_weight) == (0.0, 1.0)
        assert not result.model.training
        assert result.held_out == 6
        assert result.files == (tmp_path / "out" / "network.json",)

    def test_it_comes_back(
        self, run: Callable[..., PruneRun], tiny_network: nn.Module, inputs: torch.Tensor, tmp_path: Path
    ) -> None:
        drawn(tiny_network)
        scales = group_scales(tiny_network, find_groups(tiny_network, SAMPLE).usable)["stem"]
        options = {"sparsity_steps": 0}
        result = run(tiny_network, threshold=float(scales.median()) + 1e-3, options=options, output=tmp_path)
        found = load_network(tmp_path, tiny_network)
        assert torch.equal(found(inputs), result.model(inputs))
        assert found.stem.out_channels < 8  # type: ignore[union-attr]

    def test_it_goes_on_to_quantization(self, run: Callable[..., PruneRun], inputs: torch.Tensor) -> None:
        from dfq_plugins.quantization.run import run_quantization

        pruned = run(macs=0.6).model
        quantized = run_quantization(pruned, inputs, calibrator="pytorch-quantization")
        assert quantized.model(inputs).shape == (60, 4)

    def test_same_seed_same_network(self, run: Callable[..., PruneRun]) -> None:
        first, again, other = (run(macs=0.7, training={"seed": seed}).model for seed in (0, 0, 1))
        assert torch.equal(first.stem.weight, again.stem.weight)  # type: ignore[union-attr, arg-type]
        assert not torch.equal(first.stem.weight, other.stem.weight)  # type: ignore[union-attr, arg-type]

    def test_model_and_process_stay_as_they_were(self, run: Callable[..., PruneRun], tiny_network: nn.Module) -> None:
        tiny_network.train()
        before, random = capture(tiny_network), torch.random.get_rng_state()
        for settings in ({"macs": 0.7}, {"sparsity": 0.5}):
            run(**settings)
            with pytest.raises(UsageError):
                run(**{name: value / 1000 if name == "macs" else 0.9999 for name, value in settings.items()})
        assert tiny_network.training
        assert all(torch.equal(value, before[name]) for name, value in capture(tiny_network).items())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in tiny_network.modules())
        assert torch.equal(torch.random.get_rng_state(), random)

    @pytest.mark.slow
    def test_a_run_that_was_interrupted_goes_on(self, run: Callable[..., PruneRun], tmp_path: Path) -> None:
        whole = run(macs=0.7, options={"penalty_warm_up": 0.9})
        for stage, step in (("sparsify", 4), ("finetune", 8)):

            def interrupt(event: ProgressEvent, stage: str = stage, step: int = step) -> None:
                if (event.stage, event.completed) == (stage, step):
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                run(macs=0.7, options={"penalty_warm_up": 0.9}, work=tmp_path, listeners=[interrupt])
        resumed = run(macs=0.7, options={"penalty_warm_up": 0.9}, work=tmp_path)
        assert all(torch.equal(value, capture(whole.model)[name]) for name, value in capture(resumed.model).items())
        with pytest.raises(DataError, match="checkpoint of another run"):
            run(macs=0.7, options={"penalty_warm_up": 0.5}, work=tmp_path)

    @pytest.mark.parametrize("term", ["attention_weight", "feature_weight"])
    def test_both_terms_compare_networks_of_other_widths(self, run: Callable[..., PruneRun], term: str) -> None:
        assert run(macs=0.7, training={term: 1.0, "feature_layers": ("conv",)}).after.macs

    def test_stages_are_compared_where_they_are_alike(self, run: Callable[..., PruneRun]) -> None:
        settings = run(sparsity=0.5).training
        assert (settings.feature_weight, settings.feature_layers) == (100.0, ("linear",))
        for given in ({"feature_weight": 0.0}, {"attention_weight": 1.0, "feature_layers": ("conv",)}):
            assert run(sparsity=0.5, training=given).training.feature_weight == 0.0
        assert run(macs=0.7).training.feature_weight == 0.0  # fewer channels, and no places to map them by

    def test_a_limit_of_time_is_shared(self, run: Callable[..., PruneRun]) -> None:
        result = run(macs=0.7, training={"max_seconds": 60.0})
        assert result.history[-1].step == 12

    def test_the_papers_preset(self) -> None:
        from dfq_plugins.host.options import parse_options

        settings = parse_options(PruneTrainingOptions, {"preset": "zhu2020", "steps": 10})
        assert (settings.kl_weight, settings.symmetrized_kl_weight, settings.learning_rate) == (0.0, 1.0, 0.001)
        assert (settings.steps, settings.attention_weight) == (10, 250.0)


class TestRefusals:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({}, r"Give exactly one amount to prune: .* got none"),
            ({"threshold": 0.1, "sparsity": 0.5}, r"got threshold, sparsity"),
            ({"macs": 1.5}, r"macs must be above 0 and below 1, got 1.5"),
            ({"threshold": -0.1}, r"threshold must be above 0 and below inf, got -0.1"),
            ({"macs": 0.7, "rewind_to": {}}, r"rewind_to makes a lottery ticket .* sparsity=0.8"),
            ({"macs": 0.7, "options": {"keep": ("stam",)}}, r"The option keep names 'stam'.*'stem'"),
            ({"macs": 0.7, "data": None}, r"give data, or the name of a generator, e.g. generator='bns'"),
            ({"macs": 0.7, "generator": "bns"}, r"'bns' makes data sets, but data is given too"),
            ({"macs": 0.001}, r"of the MACs would empty layers: .*'stem'"),
            ({"threshold": 50.0}, r"The threshold 50 would empty the layer 'stem'"),
        ],
    )
    def test_bad_usage(self, run: Callable[..., PruneRun], settings: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            run(**settings)

    def test_data_of_another_shape(self, run: Callable[..., PruneRun]) -> None:
        with pytest.raises(DataError, match=r"must have the shape \(samples, 3, 8, 8\)"):
            run(data=torch.randn(8, 3, 6, 6), macs=0.7)


class TestWeights:
    def test_the_smallest_weights_go(self, run: Callable[..., PruneRun], tiny_network: nn.Module) -> None:
        result = run(sparsity=0.5, training={"steps": 3})
        layers = {name: module for name, module in tiny_network.named_modules() if hasattr(module, "weight")}
        weights = {name: layers[name].weight.detach().flatten() for name in ("stem", "conv", "linear")}  # type: ignore[union-attr, operator]
        border = torch.cat(list(weights.values())).abs().median()
        for layer in result.layers:
            assert layer.after == int((weights[layer.name].abs() > border).sum())
            assert int(result.model.get_submodule(layer.name).weight.count_nonzero()) == layer.after  # type: ignore[operator, union-attr]
        assert (result.method, result.after.macs) == ("weights", result.before.macs)
        assert result.after.nonzero < 0.6 * result.after.parameters
        assert set(result.model.state_dict()) == set(tiny_network.state_dict())

    def test_a_sparsity_that_empties_a_layer(self, tiny_network: nn.Module) -> None:
        tiny_network.linear.weight.data *= 1e-6  # type: ignore[union-attr, operator]
        with pytest.raises(
            UsageError,
            match=r"A sparsity of 0.3 would empty the layer 'linear': all its 32 weights are among the smallest",
        ):
            prune_weights(tiny_network, 0.3)

    def test_a_network_without_weights(self) -> None:
        with pytest.raises(ModelError, match="has no convolution or linear layer"):
            prune_weights(nn.Sequential(nn.ReLU()), 0.5)


class TestTickets:
    @pytest.fixture
    def initial(self, tiny_network: nn.Module) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(9)
            return type(tiny_network)()

    def test_it_rewinds_and_keeps_its_masks(self, tiny_network: nn.Module, initial: nn.Module) -> None:
        ticket = Ticket.find(tiny_network, initial, 0.75)
        network = ticket.rewind(tiny_network)
        masks = masks_of(network)
        assert ticket.sparsity == pytest.approx(0.75, abs=0.01)
        for name, mask in masks.items():
            first = initial.get_parameter(name)
            assert torch.equal(network.get_submodule(name.removesuffix(".weight")).weight, first * mask)  # type: ignore[arg-type]
        assert torch.equal(network.norm1.running_mean, torch.zeros(8))  # type: ignore[arg-type, union-attr]
        bake(network)
        assert set(network.state_dict()) == set(tiny_network.state_dict())

    def test_it_is_saved_and_loaded(self, tiny_network: nn.Module, initial: nn.Module, tmp_path: Path) -> None:
        ticket = Ticket.find(tiny_network, initial.state_dict(), 0.5)
        assert ticket.save(tmp_path) == tmp_path / "ticket.json"
        found = Ticket.load(tmp_path)
        assert found.architecture == ticket.architecture
        assert all(torch.equal(found.masks[name], mask) for name, mask in ticket.masks.items())
        assert all(torch.equal(found.initial[name], value) for name, value in ticket.initial.items())
        assert model_digest(found.rewind(tiny_network)) == model_digest(ticket.rewind(tiny_network))

    def test_it_is_trained_without_data(
        self, run: Callable[..., PruneRun], initial: nn.Module, tmp_path: Path, tiny_network: nn.Module
    ) -> None:
        result = run(sparsity=0.5, rewind_to=initial, output=tmp_path)
        assert result.method == "ticket"
        assert result.history[-1].held_out_loss < result.history[0].held_out_loss
        assert result.files[1] == tmp_path / "ticket" / "ticket.json"
        ticket = Ticket.load(tmp_path / "ticket")
        for name, mask in ticket.masks.items():
            weight = result.model.get_parameter(name)
            assert torch.equal(weight != 0, mask)
            assert not torch.equal(weight, tiny_network.get_parameter(name) * mask)

    def test_a_ticket_of_another_model(self, tiny_network: nn.Module, initial: nn.Module) -> None:
        ticket = Ticket.find(tiny_network, initial, 0.5)
        other = Preactivated()
        digests = (
            rf"digest {ticket.architecture[:12]}, and that of Preactivated is {model_digest(other, weights=False)[:12]}"
        )
        with pytest.raises(DataError, match=f"The ticket belongs to another model: its architecture has the {digests}"):
            ticket.rewind(other)

    def test_masks_and_values_of_another_network(self, tiny_network: nn.Module, initial: nn.Module) -> None:
        with pytest.raises(
            ModelError, match=r"The initial values of a ticket .* 'conv1.weight' does not match TinyNetwork"
        ):
            Ticket.find(tiny_network, Preactivated(), 0.5)
        with pytest.raises(ModelError, match="The masks of a ticket must belong to the given network, but 'nothing'"):
            Ticket.from_masks(tiny_network, {"nothing": torch.ones(2)}, initial)
        with pytest.raises(UsageError, match="The ticket would empty the layer 'stem'"):
            Ticket.from_masks(tiny_network, {"stem.weight": torch.zeros(8, 3, 3, 3)}, initial)

    def test_what_is_damaged_is_refused(self, tiny_network: nn.Module, initial: nn.Module, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="does not hold a valid ticket: FileNotFoundError"):
            Ticket.load(tmp_path)
        path = Ticket.find(tiny_network, initial, 0.5).save(tmp_path)
        path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 9'))
        with pytest.raises(DataError, match="format version 9; install a newer dfq-plugins"):
            Ticket.load(tmp_path)
        path.write_text(path.read_text().replace('"format_version": 9', '"format_version": 1'))
        (tmp_path / "ticket.safetensors").write_bytes(b"nothing")
        with pytest.raises(DataError, match="its tensors have changed since they were written"):
            Ticket.load(tmp_path)


def test_settings_may_be_a_record_of_any_training(tiny_network: nn.Module) -> None:
    record = TrainingOptions(steps=2, batch_size=16)
    result = prune(tiny_network, torch.randn(20, 3, 8, 8), sparsity=0.5, training=record)
    assert result.training == replace(record, padding=0)


def test_recentering_moves_means_and_scales_variances(tiny_network: nn.Module) -> None:
    network = drawn(tiny_network)
    groups = find_groups(network, SAMPLE).usable
    removed, batches = {"stem": [1, 4]}, [SAMPLE, SAMPLE + 0.5]
    pruned = copy.deepcopy(network)
    remove_filters(pruned, SAMPLE, groups, removed)
    before, after = (batch_statistics(model, batches)["norm2"] for model in (network, pruned))
    kept = [0, 2, 3, 5, 6, 7]
    mean, variance = pruned.norm2.running_mean.clone(), pruned.norm2.running_var.clone()
    recenter(pruned, network, groups, removed, batches)
    torch.testing.assert_close(pruned.norm2.running_mean, mean + after[0] - before[0][kept])
    torch.testing.assert_close(pruned.norm2.running_var, variance * after[1] / before[1][kept])
    assert not torch.allclose(pruned.norm2.running_var, variance)


def test_both_trainings_share_the_time_limit_by_their_steps() -> None:
    settings = PruneTrainingOptions(steps=30, max_seconds=60.0)
    job = _Job(None, None, PruningOptions(sparsity_steps=10), settings, None, None)  # type: ignore[arg-type]
    pressing, training = job._split_time()
    assert (pressing.max_seconds, training.max_seconds) == (15.0, 45.0)
