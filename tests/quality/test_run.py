"""The inspection: each figure against an independent reference, what is refused, and what is said to be missing."""

from __future__ import annotations

import copy
import json
import math
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from torch import nn

import dfq_plugins
from dfq_plugins import InputSpec, SyntheticDataset
from dfq_plugins.errors import DataError
from dfq_plugins.network.normalization import clamped_share
from dfq_plugins.network.origin import DataOriginWarning
from dfq_plugins.quality import ranges, teacher, verdict
from dfq_plugins.quality.inspection import Inspection, LayerQuality
from dfq_plugins.quality.run import inspect
from dfq_plugins.statistics.batch_norm import layer_divergences

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SPEC = InputSpec((3, 8, 8), (0.5,) * 3, (0.25,) * 3, (0.0, 1.0), 4)


def noise(count: int, *, std: float = 1.0, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return (std * torch.randn(count, 3, 8, 8, generator=rng)).clamp(-2, 2)


# ------------------------------------------------------------------------------------- ranges


@pytest.mark.parametrize("share", [0.5, 0.99, 0.999])
def test_the_expected_range_solves_the_mixture_of_the_channels(share: float) -> None:
    mean, deviation = np.array([0.0, 1.5, -2.0]), np.array([1.0, 0.25, 0.5])

    def inside(width: float) -> float:
        return float(np.mean(stats.norm.cdf(width, mean, deviation) - stats.norm.cdf(-width, mean, deviation)))

    reference = optimize.brentq(lambda width: inside(width) - share, 0, 50)
    found = ranges.gaussian_mixture_range(torch.tensor(mean), torch.tensor(-deviation), share)  # the sign is no matter
    assert found == pytest.approx(reference, rel=1e-6)


def test_a_channel_without_deviation_sits_at_its_mean() -> None:
    assert ranges.gaussian_mixture_range(torch.tensor([-2.0]), torch.zeros(1)) == pytest.approx(2.0)


def test_a_quantile_of_the_histogram_is_within_its_resolution() -> None:
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    found = ranges.histogram_quantile(ranges.width_histogram(values), 0.999)
    assert found == pytest.approx(np.quantile(values.abs().numpy(), 0.999), rel=0.025)


def test_values_outside_the_histogram_count_at_its_edges() -> None:
    counts = ranges.width_histogram(torch.tensor([0.0, 2.0**30, 1.0, -(2.0**30)]))
    assert counts.sum() == 4
    assert ranges.histogram_quantile(counts, 1.0) == 2.0**20
    assert ranges.histogram_quantile(counts, 0.1) < 2**-19


def test_ranges_are_those_of_the_output_of_each_batch_norm(tiny_network: nn.Module) -> None:
    outputs: dict[str, list[torch.Tensor]] = {"norm1": [], "norm2": []}
    inputs = noise(64)
    with ranges.RangeHooks(tiny_network, ("norm1", "norm2")) as hooks:
        handles = [
            tiny_network.get_submodule(name).register_forward_hook(lambda _m, _i, out, kept=kept: kept.append(out))
            for name, kept in outputs.items()
        ]
        for part in inputs.split(20):
            tiny_network(part)
        found = hooks.ranges(0.99)
    for handle in handles:
        handle.remove()
    for name, kept in outputs.items():
        reference = np.quantile(torch.cat(kept).detach().abs().numpy(), 0.99)
        assert found[name] == pytest.approx(reference, rel=0.02)
    assert not any(module._forward_pre_hooks for module in tiny_network.modules())


def test_the_training_datas_own_ranges_are_near_the_expected_ones(tiny_network: nn.Module) -> None:
    found = inspect(noise(256), tiny_network, spec=SPEC)
    assert found.range_error is not None
    assert found.range_error < 0.15
    assert found.surprise is not None
    assert found.surprise < 0.01
    assert [layer.name for layer in found.layers] == ["input", "norm1", "norm2"]
    assert found.layers[0].expected_range is None
    assert found.layers[0].range_octaves is None


def test_too_wide_and_too_narrow_both_count(tiny_network: nn.Module) -> None:
    free = InputSpec((3, 8, 8), num_classes=4)
    errors = [inspect(noise(64) * factor, tiny_network, spec=free) for factor in (0.25, 1.0, 4.0)]
    narrow, right, wide = (found.range_error or math.nan for found in errors)
    assert right < narrow
    assert right < wide
    assert (errors[0].layers[0].range_octaves or 0) < 0 < (errors[2].layers[0].range_octaves or 0)


def test_a_layer_without_weights_has_a_unit_gaussian() -> None:
    layer = nn.BatchNorm2d(2, affine=False)
    layer.running_mean += 3
    expected = ranges.expected_ranges(nn.Sequential(layer), ("0",))
    assert expected["0"] == pytest.approx(stats.norm.ppf(1 - 0.005), rel=1e-5)
    values = torch.randn(4, 2, 3, 3)
    assert torch.allclose(ranges.batch_norm_output(layer.eval(), values), layer(values), atol=1e-6)


# ------------------------------------------------------------------------------------- what the network sees


def test_confidence_is_the_mean_largest_probability() -> None:
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
    assert teacher.confidence(logits) == pytest.approx((0.75 + 0.5) / 2)


@pytest.mark.parametrize("counts", [(5, 3, 2, 0), (1, 1, 0, 0), (9, 1), (7,)])
def test_label_balance_is_the_relative_entropy_of_the_histogram(counts: tuple[int, ...]) -> None:
    largest = math.log(min(len(counts), sum(counts)))
    reference = stats.entropy(counts) / largest if largest else 1.0
    assert teacher.label_balance(counts) == pytest.approx(reference)


def test_diversity_is_the_relative_distance_to_the_nearest_neighbor() -> None:
    features = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
    nearest = [min(np.linalg.norm(a - b) for j, b in enumerate(features) if j != i) for i, a in enumerate(features)]
    reference = np.mean(nearest) / np.sqrt((features**2).sum(1).mean())
    assert teacher.diversity(torch.from_numpy(features)) == pytest.approx(reference, rel=1e-5)
    assert teacher.diversity(torch.zeros(3, 2)) == 0.0


def test_twins_have_no_diversity(tiny_network: nn.Module) -> None:
    twins = inspect(noise(8).repeat(2, 1, 1, 1), tiny_network, spec=SPEC)
    assert twins.diversity == 0.0
    assert (inspect(noise(16), tiny_network, spec=SPEC).diversity or 0) > 0


def test_features_are_what_the_last_layer_reads(tiny_network: nn.Module) -> None:
    read: list[torch.Tensor] = []
    handle = tiny_network.linear.register_forward_pre_hook(lambda _module, inputs: read.append(inputs[0]))
    with torch.no_grad(), teacher.TeacherHooks(tiny_network, 4) as hooks:
        outputs = torch.cat([tiny_network(part) for part in noise(8).split(4)])
    handle.remove()
    assert hooks.features is not None
    assert torch.equal(hooks.features, torch.cat(read))
    assert hooks.logits is not None
    assert torch.equal(hooks.logits, outputs)
    assert not tiny_network._forward_hooks


def test_positions_are_averaged_where_the_last_layer_is_a_convolution() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    inputs = noise(4)
    with torch.no_grad(), teacher.TeacherHooks(network, None) as hooks:
        network(inputs)
    assert hooks.features is not None
    assert torch.allclose(hooks.features, inputs.mean((2, 3)))


def test_the_share_at_the_clamp_counts_both_edges() -> None:
    inputs = torch.zeros(1, 3, 8, 8)
    inputs[0, 0, 0, 0], inputs[0, 1, 0, 0], inputs[0, 2, 0, 0] = 2.0, -2.0, 1.9
    assert clamped_share([inputs], SPEC) == pytest.approx(2 / 192)
    assert clamped_share([inputs], InputSpec((3, 8, 8))) is None


# ------------------------------------------------------------------------------------- the whole record


def test_the_divergence_is_that_of_the_statistics(tiny_network: nn.Module) -> None:
    inputs = noise(70, std=0.5)
    found = inspect(inputs, tiny_network, spec=SPEC)
    reference = layer_divergences(tiny_network, [inputs], SPEC)
    assert {layer.name: layer.divergence for layer in found.layers} == pytest.approx(dict(reference))
    assert found.divergence == pytest.approx(np.mean(list(reference.values())))
    assert found.num_samples == 70


def test_the_same_set_gives_the_same_record_whatever_its_form(tiny_network: nn.Module, tmp_path: Path) -> None:
    data = dfq_plugins.synthesize(tiny_network, SPEC, generator="gaussian", num_samples=20, output=tmp_path / "set")
    whole = dfq_plugins.inspect(data, tiny_network)
    assert dfq_plugins.inspect(tmp_path / "set", tiny_network) == whole
    assert dfq_plugins.inspect(str(tmp_path / "set"), tiny_network) == whole
    assert dfq_plugins.inspect(data.inputs(), tiny_network, spec=SPEC) == whole
    assert sum(whole.label_counts) == 20


def test_labels_that_were_asked_for_count_not_those_that_the_network_sees(
    tiny_network: nn.Module, tmp_path: Path
) -> None:
    data = dfq_plugins.synthesize(
        tiny_network, SPEC, generator="inception", num_samples=8, options={"iterations": 1}, output=tmp_path / "set"
    )
    assert dfq_plugins.inspect(data, tiny_network).label_counts == (2, 2, 2, 2)


def test_the_model_and_the_process_stay_as_they_were(tiny_network: nn.Module) -> None:
    tiny_network.train()
    before = copy.deepcopy(tiny_network.state_dict())
    state = torch.get_rng_state()
    inspect(noise(8), tiny_network, spec=SPEC)
    assert tiny_network.training
    assert all(torch.equal(value, before[name]) for name, value in tiny_network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in tiny_network.modules())


def test_a_set_of_another_model_is_refused_with_both_digests(tiny_network: nn.Module, tmp_path: Path) -> None:
    data = dfq_plugins.synthesize(tiny_network, SPEC, generator="gaussian", num_samples=4, output=tmp_path / "set")
    other = copy.deepcopy(tiny_network)
    with torch.no_grad():
        other.linear.bias += 1
    from dfq_plugins.network.digest import model_digest

    theirs, ours = (model_digest(model)[:12] for model in (tiny_network, other))
    message = (
        f"The data in {data.folder} was made from another model: its digest is {theirs}, and the given model's is "
        f"{ours}. Give the model that it was made from, with the same weights"
    )
    with pytest.raises(DataError, match=f"^{re.escape(message)}"):
        inspect(SyntheticDataset.open(data.folder), other)
    with pytest.warns(DataOriginWarning, match="match the other model's statistics"):
        inspect(SyntheticDataset.open(data.folder), other, allow_other_network=True)


def test_one_sample_is_too_few(tiny_network: nn.Module) -> None:
    message = (
        "An inspection compares samples with each other and needs at least 2, got 1. Give more; a calibration set has "
        "hundreds."
    )
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        inspect(noise(1), tiny_network, spec=SPEC)


def test_samples_of_another_shape_are_refused(tiny_network: nn.Module) -> None:
    with pytest.raises(DataError, match=r"must have the shape \(samples, 3, 8, 8\), got \(4, 3, 4, 4\)"):
        inspect(torch.zeros(4, 3, 4, 4), tiny_network, spec=SPEC)


def test_values_that_are_not_finite_are_refused(tiny_network: nn.Module) -> None:
    with pytest.raises(DataError, match="must be finite"):
        inspect(torch.full((4, 3, 8, 8), math.nan), tiny_network, spec=SPEC)


def without_norm() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def untrained() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize(
    ("network", "cause"),
    [(without_norm, "has no BatchNorm layer"), (untrained, "still hold their initial statistics")],
)
def test_without_usable_batch_norm_the_other_figures_are_given_and_the_lack_is_said(
    network: Callable[[], nn.Module], cause: str
) -> None:
    found = inspect(noise(8), network(), spec=SPEC)
    assert (found.divergence, found.range_error, found.score, found.layers) == (None, None, None, ())
    assert found.verdict == "no verdict"
    assert found.reason == "Without recorded BatchNorm statistics, there is nothing to compare the set with."
    assert None not in (found.confidence, found.label_balance, found.diversity, found.clamped)
    assert len(found.notes) == 1
    assert found.notes[0].startswith("divergence, ranges, score. ")
    assert cause in found.notes[0]
    assert f"Not available: {found.notes[0]}" in found.render_text()


def test_what_needs_a_classifier_a_layer_or_a_range_is_said_to_be_missing() -> None:
    network = nn.BatchNorm2d(3)
    network.running_mean += 0.5
    found = inspect(noise(8), network, spec=InputSpec((3, 8, 8)))
    assert (found.confidence, found.label_balance, found.diversity, found.clamped) == (None, None, None, None)
    assert found.label_counts == ()
    assert found.notes == (
        "teacher confidence and label balance. The network is not known to be a classifier.",
        "diversity. The network has no linear or convolution module whose input could be read.",
        "values at the clamp. The valid range of the input is unknown; give --value-range.",
    )
    assert found.score is not None


def test_the_record_is_plain_json_and_readable_text(tiny_network: nn.Module) -> None:
    found = inspect(noise(16), tiny_network, spec=SPEC)
    record = json.loads(json.dumps(found.as_dict()))
    assert record["layers"][1]["range_octaves"] == pytest.approx(found.layers[1].range_octaves)
    assert record["verdict"] == found.verdict
    text = found.render_text()
    assert f"Verdict: {found.verdict}. {found.reason}" in text
    assert re.search(r"^samples +16$", text, re.MULTILINE)
    assert found.verdict in found._repr_html_()


# ------------------------------------------------------------------------------------- verdict


def layer(name: str, surprise: float, octaves: float = 0.0) -> LayerQuality:
    return LayerQuality(name, 9.0, surprise, 1.0, 2.0**octaves)


def judged(*layers: LayerQuality) -> Inspection:
    return verdict.judged(
        num_samples=8,
        layers=layers,
        label_counts=(4, 4),
        confidence=0.5,
        diversity=0.5,
        clamped=0.0,
        why_not="",
    )


def test_the_worse_error_decides_the_score() -> None:
    assert verdict.score(0.0, 0.0) == 100
    assert verdict.score(verdict.SURPRISE_UNIT, 0.0) == verdict.score(0.0, verdict.RANGE_UNIT) == 50
    assert verdict.score(verdict.SURPRISE_UNIT, verdict.RANGE_UNIT) == 50
    assert verdict.score(0.3, 0.0) > verdict.score(0.4, 0.0)


def test_surprise_is_the_divergence_with_the_roles_changed(tiny_network: nn.Module) -> None:
    inputs = noise(32, std=0.5)
    found = inspect(inputs, tiny_network, spec=SPEC)
    with torch.no_grad():
        seen = tiny_network.stem(inputs)
    norm = tiny_network.norm1
    recorded, spread = norm.running_mean.numpy(), np.sqrt(norm.running_var.numpy() + norm.eps)
    mean = seen.mean((0, 2, 3)).numpy()
    deviation = np.sqrt(seen.var((0, 2, 3), correction=0).numpy() + norm.eps)
    reference = np.log(spread / deviation) + (deviation**2 + (mean - recorded) ** 2) / (2 * spread**2) - 0.5
    assert found.layers[1].surprise == pytest.approx(reference.mean(), rel=1e-3)
    assert found.surprise == pytest.approx(np.mean([one.surprise for one in found.layers]))


@pytest.mark.parametrize(
    ("errors", "word", "reason"),
    [
        (
            ((0.01, 0.1), (0.02, -0.15)),
            "enough for W4A4",
            (
                "The score 62 reaches 50: the statistics deviate most at norm2 (0.020 nats), "
                "the range at norm2 (1.11 times narrower than recorded)."
            ),
        ),
        (
            ((0.12, 0.0), (0.0, 0.4)),
            "enough for W8A8",
            (
                "The score 40 reaches 25, not 50: the statistics deviate most at norm1 (0.120 nats), "
                "the range at norm2 (1.32 times wider than recorded)."
            ),
        ),
        (
            ((0.1, 1.0), (0.0, 1.0)),
            "more samples or iterations needed",
            (
                "The score 17 is below 25: the statistics deviate most at norm1 (0.100 nats), "
                "the range at norm1 (2.00 times wider than recorded)."
            ),
        ),
    ],
)
def test_the_verdict_gives_its_reason(errors: tuple[tuple[float, float], ...], word: str, reason: str) -> None:
    found = judged(*(layer(f"norm{number}", *error) for number, error in enumerate(errors, 1)))
    assert (found.verdict, found.reason) == (word, reason)


def test_the_scale_and_shift_of_a_batch_norm_count() -> None:
    layer = nn.BatchNorm2d(4)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.5, 1.0, 2.0, 4.0]))
        layer.bias.copy_(torch.tensor([1.0, 0.0, -1.0, 0.0]))
        layer.running_var.copy_(torch.tensor([0.5, 1.0, 2.0, 4.0]))
    layer.eval()
    inputs = torch.randn(8, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ranges.batch_norm_output(layer, inputs), layer(inputs))
    network = nn.Sequential(layer)
    expected = ranges.gaussian_mixture_range(layer.bias.detach(), layer.weight.detach())
    assert ranges.expected_ranges(network, ["0"])["0"] == pytest.approx(expected)
    with torch.no_grad():
        layer.weight *= 2
    assert ranges.expected_ranges(network, ["0"])["0"] > 1.5 * expected
