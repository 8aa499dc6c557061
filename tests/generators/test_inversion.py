"""The built-in generators: counts, determinism, bounds, labels, and that each does what it is for."""

from __future__ import annotations

import functools
import itertools
import logging
import math
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from dfq_plugins.errors import DivergedError, ModelError, UsageError
from dfq_plugins.generators.gaussian import GaussianGenerator
from dfq_plugins.generators.inversion import SMALLEST_BATCH, BatchNormGenerator, balanced_labels, even_split
from dfq_plugins.generators.noise import Noise, colored, draw_noise
from dfq_plugins.generators.options import BatchNormOptions, GaussianOptions
from dfq_plugins.generators.start import color_candidates, fitted_noise, known_noise, scale_candidates
from dfq_plugins.host.registry import Registry, build_registry
from dfq_plugins.model_state import frozen_copy
from dfq_plugins.statistics.augmentation import Augmentation, augment
from dfq_plugins.statistics.batch_norm import layer_divergences
from dfq_plugins.synthesis import compile_choice
from dfq_plugins.synthesis import loop as optimization
from dfq_plugins.synthesis.compile_choice import compile_pays, step_work
from dfq_plugins.synthesis.loop import learning_rate_at, optimize_inputs
from dfq_plugins.synthesis.objective import InversionObjective
from dfq_plugins.synthesis.options import InversionOptions
from dfq_plugins.synthesis.schedule import StepSchedule
from dfq_plugins.types import Batch, InputSpec, ProgressEvent

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

NAMES = ("gaussian", "inception", "bns", "bns+inception")
CONDITIONAL = ("inception", "bns+inception")
OPTIMIZING = ("inception", "bns", "bns+inception")
QUICK = {"iterations": 3, "precision": "float32"}
SPEC = InputSpec((3, 8, 8), (0.5,) * 3, (0.25,) * 3, (0.0, 1.0), num_classes=4)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def registry() -> Registry:
    plugin = EntryPoint("builtin-generators", "dfq_plugins.generators.plugin", "dfq_plugins")
    return build_registry(entry_points=[plugin], strict=True)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A network whose statistics come from smooth, skewed images: noise is far from them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
        layers += [nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
        coarse = torch.randn(64, 1, 2, 2).expand(-1, 3, -1, -1) + 0.3 * torch.randn(64, 3, 1, 1)
        images = nn.functional.interpolate(coarse, size=(8, 8), mode="bilinear").clamp(-2, 2)
        images = (images - images.mean((0, 2, 3), keepdim=True)) / images.std((0, 2, 3), keepdim=True)
        with torch.no_grad():
            for _ in range(80):
                model(images)
    return frozen_copy(model)


def options_for(name: str, **settings: object) -> dict[str, object]:
    return settings if name == "gaussian" else {**QUICK, **settings}


def make(
    registry: Registry,
    name: str,
    network: nn.Module,
    count: int,
    *,
    seed: int = 0,
    spec: InputSpec = SPEC,
    batch_size: int | None = None,
    report: Callable[[ProgressEvent], None] = lambda _: None,
    **settings: object,
) -> list[Batch]:
    maker = registry.create("generator", name, options_for(name, **settings))
    rng = torch.Generator().manual_seed(seed)
    batches = maker.generate(network, spec, num_samples=count, batch_size=batch_size or count, rng=rng, report=report)
    return list(batches)


def inputs_of(batches: list[Batch]) -> Tensor:
    return torch.cat([batch.inputs for batch in batches])


def mean_divergence(network: nn.Module, batches: list[Batch], spec: InputSpec = SPEC) -> float:
    layers = layer_divergences(network, [inputs_of(batches)], spec)
    return sum(layers.values()) / len(layers)


# ------------------------------------------------------------------------------------------------ what all share


def test_the_four_generators_come_first_through_the_public_hook(registry: Registry) -> None:
    assert tuple(registry.generators)[: len(NAMES)] == NAMES


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("count", "batch_size"), [(1, 1), (1, 64), (31, 64), (40, 32), (45, 32)])
def test_exactly_as_many_as_asked_for_in_batches_no_larger(
    registry: Registry, network: nn.Module, name: str, count: int, batch_size: int
) -> None:
    batches = make(registry, name, network, count, batch_size=batch_size)
    assert inputs_of(batches).shape == (count, 3, 8, 8)
    assert max(len(batch.inputs) for batch in batches) <= batch_size
    assert not inputs_of(batches).requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_bytes_and_another_seed_others(registry: Registry, network: nn.Module, name: str) -> None:
    first, again, other = (inputs_of(make(registry, name, network, 33, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.isclose(first, other).any(0).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_generator_object_gives_a_shard_the_same_bytes_whatever_it_made_before(
    registry: Registry, network: nn.Module, name: str
) -> None:
    maker = registry.create("generator", name, options_for(name))

    def shard(seed: int, count: int) -> Tensor:
        rng = torch.Generator().manual_seed(seed)
        return inputs_of(
            list(maker.generate(network, SPEC, num_samples=count, batch_size=count, rng=rng, report=lambda _: None))
        )

    before = shard(1, 32)
    shard(2, 40)
    assert torch.equal(before, shard(1, 32))
    assert torch.equal(before, inputs_of(make(registry, name, network, 32, seed=1)))


@pytest.mark.parametrize("name", NAMES)
def test_values_stay_within_the_bounds_of_each_channel(registry: Registry, network: nn.Module, name: str) -> None:
    spec = InputSpec((3, 8, 8), (0.2, 0.5, 0.8), (0.2, 0.25, 0.1), (0.0, 1.0), 4)
    assert spec.bounds is not None
    low, high = (torch.tensor(edge).view(1, 3, 1, 1) for edge in spec.bounds)
    values = inputs_of(make(registry, name, network, 32, spec=spec))
    assert (values >= low).all()
    assert (values <= high).all()
    assert (values == low).any()  # noise of these moments does reach the edge
    free = inputs_of(make(registry, name, network, 32, spec=spec, clamp=False))
    assert (free < low).any()


@pytest.mark.parametrize("name", NAMES)
def test_progress_rises_to_the_total(registry: Registry, network: nn.Module, name: str) -> None:
    heard: list[ProgressEvent] = []
    make(registry, name, network, 64, batch_size=32, report=heard.append)
    shares = [event.completed / event.total for event in heard]
    assert len(shares) >= 2
    assert shares == sorted(shares)
    assert shares[-1] == 1


@pytest.mark.parametrize("name", NAMES)
def test_the_network_and_the_global_generator_are_left_alone(registry: Registry, network: nn.Module, name: str) -> None:
    before = [value.clone() for value in network.state_dict().values()]
    state = torch.get_rng_state()
    make(registry, name, network, 8)
    assert all(torch.equal(*pair) for pair in zip(before, network.state_dict().values(), strict=True))
    assert torch.equal(state, torch.get_rng_state())
    assert not any(module._forward_pre_hooks for module in network.modules())


# ------------------------------------------------------------------------------------------------ labels


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("count", "batch_size"), [(3, 8), (10, 10), (45, 32)])
def test_class_conditional_labels_are_balanced(
    registry: Registry, network: nn.Module, name: str, count: int, batch_size: int
) -> None:
    batches = make(registry, name, network, count, batch_size=batch_size)
    if name not in CONDITIONAL:
        assert all(batch.labels is None for batch in batches)
        return
    labels = torch.cat([batch.labels for batch in batches if batch.labels is not None])
    counts = labels.bincount(minlength=4)
    assert len(labels) == count
    assert labels.dtype == torch.int64
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_conditional_generators_say_so(registry: Registry, name: str) -> None:
    maker = registry.create("generator", name)
    assert maker.conditional == (name in CONDITIONAL)


def test_labels_reach_every_class_where_a_shard_has_fewer_samples_than_classes() -> None:
    rng = torch.Generator().manual_seed(0)
    shards = [balanced_labels(32, 1000, rng) for _ in range(300)]
    assert all(len(labels.unique()) == 32 for labels in shards)
    assert len(torch.cat(shards).unique()) > 990


@pytest.mark.parametrize(("total", "largest"), list(itertools.product([1, 2, 7, 100], [1, 3, 64])))
def test_even_split(total: int, largest: int) -> None:
    sizes = even_split(total, largest)
    assert sum(sizes) == total
    assert max(sizes) <= largest
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == math.ceil(total / largest)


# ------------------------------------------------------------------------------------------------ what each is for


def test_gaussian_has_the_moments_of_the_input(registry: Registry, network: nn.Module) -> None:
    free = inputs_of(make(registry, "gaussian", network, 200, clamp=False))
    assert free.mean().item() == pytest.approx(0, abs=0.02)
    assert free.std().item() == pytest.approx(1, abs=0.02)
    ranged = InputSpec((3, 8, 8), value_range=(0.0, 8.0), num_classes=4)
    drawn = inputs_of(make(registry, "gaussian", network, 200, spec=ranged, clamp=False))
    assert (drawn.mean().item(), drawn.std().item()) == (pytest.approx(4, abs=0.05), pytest.approx(2, abs=0.05))


@pytest.mark.slow
@pytest.mark.parametrize("divergence", ["symmetrized-kl", "kl", "l2"])
def test_bns_lowers_the_divergence_far_below_that_of_noise(
    registry: Registry, network: nn.Module, divergence: str
) -> None:
    noise = mean_divergence(network, make(registry, "gaussian", network, 64))
    found = mean_divergence(network, make(registry, "bns", network, 64, iterations=40, divergence=divergence))
    assert noise > 0.05
    assert found < 0.1 * noise, (found, noise)


def test_inception_raises_the_wanted_logit_and_stays_smooth(registry: Registry, network: nn.Module) -> None:
    def wanted(batches: list[Batch]) -> float:
        logits = torch.cat([network(batch.inputs) for batch in batches])
        labels = torch.cat([batch.labels for batch in batches if batch.labels is not None])
        return float(logits.gather(1, labels[:, None]).mean())

    start = make(registry, "inception", network, 32, iterations=1, learning_rate=1e-6)
    pulled = make(registry, "inception", network, 32, iterations=30)
    unsmoothed = make(registry, "inception", network, 32, iterations=30, blur_weight=0)
    assert wanted(pulled) > wanted(start) + 0.5

    def roughness(batches: list[Batch]) -> float:
        return float(inputs_of(batches).diff(dim=-1).square().mean())

    assert roughness(pulled) < roughness(unsmoothed)


def test_bns_with_inception_matches_statistics_and_classes(registry: Registry, network: nn.Module) -> None:
    noise = mean_divergence(network, make(registry, "gaussian", network, 64))
    made = make(registry, "bns+inception", network, 64, iterations=40, class_weight=0.1)
    labels = torch.cat([batch.labels for batch in made if batch.labels is not None])
    right = (network(inputs_of(made)).argmax(1) == labels).float().mean()
    assert mean_divergence(network, made) < 0.3 * noise
    assert right > 0.6  # one in four by chance


def test_inception_needs_no_batch_norm(registry: Registry) -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    assert inputs_of(make(registry, "inception", frozen_copy(plain), 5)).shape == (5, 3, 8, 8)


@pytest.mark.parametrize("name", ["bns", "bns+inception"])
def test_what_inverts_batch_norm_refuses_a_network_without(registry: Registry, name: str) -> None:
    plain = frozen_copy(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    with pytest.raises(ModelError, match="no BatchNorm layer with running statistics, so there is nothing to invert"):
        make(registry, name, plain, 5)


@pytest.mark.parametrize("name", CONDITIONAL)
def test_class_terms_refuse_a_network_that_is_no_classifier(registry: Registry, network: nn.Module, name: str) -> None:
    spec = InputSpec((3, 8, 8), SPEC.mean, SPEC.std)
    message = r"A class term needs a classifier; class_weight=0 does without\. Whether .* is not known: set num_classes"
    with pytest.raises(UsageError, match=message):
        make(registry, name, network, 5, spec=spec)


def test_an_objective_without_any_term_is_refused(registry: Registry, network: nn.Module) -> None:
    message = "All weights of the objective are 0, so nothing is optimized. Set batch_norm_weight to 1."
    with pytest.raises(UsageError, match=message):
        make(registry, "bns", network, 5, batch_norm_weight=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"schedule": "constant"},
        {"class_loss": "logit", "class_weight": 0.1},
        {"total_variation_weight": 0.1},
        {"l2_weight": 0.1},
        {"blur_weight": 0.1},
        {"jitter": 2},
        {"flip": True},
        {"crop": 0.5},
        {"learning_rate": 0.05},
        {"divergence": "l2"},
        {"batch_norm_weight": 0.5, "class_weight": 0.2},
    ],
)
def test_every_setting_changes_the_result(registry: Registry, network: nn.Module, settings: dict[str, object]) -> None:
    plain = inputs_of(make(registry, "bns", network, 8, seed=1))
    changed = inputs_of(make(registry, "bns", network, 8, seed=1, **settings))
    assert changed.isfinite().all()
    assert not torch.allclose(plain, changed, atol=1e-3)


# ------------------------------------------------------------------------------------ statistics of the set


@pytest.mark.slow
def test_set_statistics_match_the_whole_shard_with_small_steps(registry: Registry, network: nn.Module) -> None:
    """Steps of 8 samples each: judged alone they cannot have the spread of the whole, judged together they can."""
    batches = make(registry, "bns", network, 48, statistics="set", iterations=25, step_samples=8)
    assert [len(batch.inputs) for batch in batches] == [8] * 6
    noise = mean_divergence(network, make(registry, "gaussian", network, 64))
    assert mean_divergence(network, batches) < 0.2 * noise


def test_step_samples_split_a_shard(registry: Registry, network: nn.Module) -> None:
    batches = make(registry, "bns", network, 70, step_samples=32)
    assert [len(batch.inputs) for batch in batches] == [24, 23, 23]


def test_pools_of_equal_batches_are_the_moments_of_their_union(network: nn.Module) -> None:
    objective = InversionObjective(network, SPEC, InversionOptions(precision="float32"))
    parts = [torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(i)) * (i + 1) for i in range(3)]
    labels = torch.zeros(16, dtype=torch.long)
    pools = [objective(part, labels, None)[2] for part in parts]
    together, _, _ = objective(parts[1], labels, objective.rest_of(pools, 1))
    whole, _, _ = objective(torch.cat(parts), torch.zeros(48, dtype=torch.long), None)
    torch.testing.assert_close(together, whole, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------ unknown normalization


@pytest.mark.slow
@pytest.mark.parametrize("value_range", [None, (-120.0, 136.0), (0.0, 400.0)])
def test_inputs_of_unknown_normalization_start_at_the_right_scale(
    registry: Registry, value_range: tuple[float, float] | None
) -> None:
    """Features of a scale far from 1, as of an audio front end: only the network's statistics tell."""
    center = 0.0 if value_range is None else (100.0 if value_range[0] == 0 else 20.0)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Conv1d(2, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.Flatten(), nn.Linear(84, 3))
        features = torch.randn(128, 2, 16) * 30 + center
        with torch.no_grad():
            for _ in range(80):
                model(features)
    network = frozen_copy(model)
    spec = InputSpec((2, 16), value_range=value_range, num_classes=3)
    objective = InversionObjective(network, spec, InversionOptions(precision="float32"))
    found = fitted_noise(objective, spec)
    assert found.center == pytest.approx(center, abs=25)
    assert 15 <= found.scale <= 60
    batches = make(registry, "bns", network, 32, spec=spec, iterations=30)
    assert mean_divergence(network, batches, spec) < 0.05


def test_zero_is_a_candidate_wherever_it_is_a_valid_input() -> None:
    inside = scale_candidates(InputSpec((1, 8), value_range=(-120.0, 136.0)), Noise())
    outside = scale_candidates(InputSpec((1, 8), value_range=(100.0, 300.0)), Noise(exponent=1.0))
    assert Noise(0.0, 64.0) in inside
    assert len(inside) == 48
    assert all(100 < noise.center < 300 and noise.exponent == 1 for noise in outside)
    assert len(outside) == 42


@pytest.mark.parametrize("shape", [(3,), (1, 16), (2, 9, 4), (1, 4, 5, 3)])
@pytest.mark.parametrize("exponent", [0.5, 2.0])
def test_colored_noise_keeps_its_variance_and_favors_slow_waves(shape: tuple[int, ...], exponent: float) -> None:
    white = torch.randn(4096, *shape, generator=torch.Generator().manual_seed(0))
    shaped = colored(white, exponent)
    assert shaped.shape == white.shape
    assert float(shaped.var()) == pytest.approx(1, abs=0.05)
    for axis in range(2, white.ndim):
        assert shaped.diff(dim=axis).square().mean() < 0.95 * white.diff(dim=axis).square().mean()


def test_channels_are_as_correlated_as_asked() -> None:
    spec = InputSpec((3, 8, 8))
    drawn = draw_noise(spec, 512, Noise(correlation=0.9), torch.Generator().manual_seed(0), torch.device("cpu"))
    found = torch.corrcoef(drawn.transpose(0, 1).flatten(1))
    assert torch.allclose(found, torch.full((3, 3), 0.9) + 0.1 * torch.eye(3), atol=0.02)


def test_the_start_has_the_color_of_the_training_data(registry: Registry) -> None:
    """A network trained on smooth images is fitted with smooth noise, and then converges from nearer."""
    spec = InputSpec((3, 16, 16), (0.5,) * 3, (0.2,) * 3, num_classes=4)
    smooth = draw_noise(spec, 128, Noise(exponent=2.0, correlation=0.9), torch.Generator().manual_seed(3), CPU)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = frozen_copy(settled(smooth))
    found = fitted_noise(InversionObjective(network, spec, InversionOptions(precision="float32")), spec)
    assert found.exponent >= 1.5
    assert found.correlation == 0.9
    fitted, white = (
        mean_divergence(network, make(registry, "bns", network, 32, spec=spec, iterations=1, start=start), spec)
        for start in ("fitted", "white")
    )
    assert fitted < 0.5 * white
    assert len(color_candidates(InputSpec((1, 8)), Noise())) == 5


def settled(inputs: torch.Tensor) -> nn.Module:
    """A small network whose BatchNorm saw `inputs`."""
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    with torch.no_grad():
        for _ in range(60):
            model(inputs)
    return model


# ------------------------------------------------------------------------------------ precision, compilation


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_both_precisions_reach_the_same_statistics(registry: Registry, network: nn.Module, precision: str) -> None:
    batches = make(registry, "bns", network, 64, iterations=40, precision=precision)
    assert inputs_of(batches).dtype == torch.float32
    noise = mean_divergence(network, make(registry, "gaussian", network, 64))
    assert mean_divergence(network, batches) < 0.2 * noise


def test_bfloat16_computes_in_bfloat16(network: nn.Module) -> None:
    objective = InversionObjective(network, SPEC, InversionOptions(precision="bfloat16"))
    seen: list[torch.dtype] = []
    objective.model[1].register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    loss, gradient, pool = objective(torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.long), None)
    assert seen == [torch.bfloat16]
    assert {loss.dtype, gradient.dtype, pool.dtype} == {torch.float32}
    assert next(network.parameters()).dtype == torch.float32


def broken_compiler(*_: object, **__: object) -> Callable[..., Any]:
    def compiled(*_: object) -> None:
        raise RuntimeError("no C++ compiler\nand a long trace")

    return compiled


def test_a_failing_compiler_is_noted_once_and_changes_nothing(
    registry: Registry, network: nn.Module, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = inputs_of(make(registry, "bns", network, 32, compile="never"))
    monkeypatch.setattr(torch, "compile", broken_compiler)
    with caplog.at_level(logging.WARNING):
        fallen_back = inputs_of(make(registry, "bns", network, 64, batch_size=32, compile="always"))[:32]
    assert [record.getMessage() for record in caplog.records] == [
        (
            "Compilation failed (RuntimeError: no C++ compiler); continuing uncompiled, more slowly. "
            "Install a C++ compiler (g++ or clang++), name it in CXX, or set compile=never."
        )
    ]
    again = inputs_of(make(registry, "bns", network, 64, batch_size=32, compile="never"))[:32]
    assert torch.equal(fallen_back, again)
    monkeypatch.setattr(torch, "compile", broken_compiler)
    assert torch.equal(plain, inputs_of(make(registry, "bns", network, 32, compile="always")))


def test_a_compiler_that_fails_in_the_backward_pass_is_survived(
    registry: Registry, network: nn.Module, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(_context: Any, loss: Tensor) -> Tensor:
            return loss.clone()

        @staticmethod
        def backward(_context: Any, *_gradients: Tensor) -> Tensor:
            raise RuntimeError("backward cannot be compiled")

    def compiler(function: Callable[..., tuple[Tensor, Tensor]], **_: object) -> Callable[..., tuple[Tensor, Tensor]]:
        def compiled(*arguments: Tensor) -> tuple[Tensor, Tensor]:
            loss, pool = function(*arguments)
            return Broken.apply(loss), pool  # type: ignore[no-untyped-call]

        return compiled

    plain = inputs_of(make(registry, "bns", network, 32, compile="never"))
    monkeypatch.setattr(torch, "compile", compiler)
    assert torch.equal(plain, inputs_of(make(registry, "bns", network, 32, compile="always")))
    assert "Compilation failed (RuntimeError: backward cannot be compiled)" in caplog.text


def test_a_compiler_that_stops_half_way_leaves_no_stale_statistics(
    registry: Registry, network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiler(function: Callable[..., Any], **_: object) -> Callable[..., Any]:
        def compiled(inputs: Tensor, *_: Tensor) -> None:
            function.__self__.model(inputs * 100)  # type: ignore[attr-defined]
            raise RuntimeError("stopped between the model and the loss")

        return compiled

    plain = inputs_of(make(registry, "bns", network, 32, compile="never"))
    monkeypatch.setattr(torch, "compile", compiler)
    assert torch.equal(plain, inputs_of(make(registry, "bns", network, 32, compile="always")))


@pytest.mark.slow
def test_the_step_is_traced_as_one_graph_with_the_same_result(
    registry: Registry, network: nn.Module, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Tracing alone, without the minutes of a C++ compiler: hooks, statistics and terms make no break in the graph."""
    plain = inputs_of(make(registry, "bns+inception", network, 32, compile="never"))
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager", fullgraph=True))
    traced = inputs_of(make(registry, "bns+inception", network, 32, compile="always"))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    torch.testing.assert_close(plain, traced, rtol=1e-3, atol=1e-3)


def test_compiling_is_decided_by_the_shard_s_own_work(network: nn.Module) -> None:
    macs = 8 * 8 * 9 * (3 * 8 + 8 * 8) + 8 * 4
    assert step_work(network, SPEC) == 2 * macs
    assert not any(module._forward_hooks for module in network.modules())
    options = InversionOptions(iterations=100)
    samples = int(compile_choice.COMPILE_WORTH / (2 * macs * 100))
    assert compile_pays(2 * macs, samples + 1, options)
    assert not compile_pays(2 * macs, samples, options)
    assert compile_pays(0, 1, InversionOptions(compile="always"))
    assert not compile_pays(2 * macs, 10 * samples, InversionOptions(compile="never"))


def test_each_shard_is_compiled_or_not_by_its_own_size(
    registry: Registry, network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = registry.create("generator", "bns", {**QUICK, "iterations": 1})
    monkeypatch.setattr(compile_choice, "COMPILE_WORTH", 50 * step_work(network, SPEC))
    compiled: list[int] = []

    def compiler(function: Callable[..., Any], **_: object) -> Callable[..., Any]:
        def counted(inputs: Tensor, *rest: Tensor) -> Any:
            compiled.append(len(inputs))
            return function(inputs, *rest)

        return counted

    monkeypatch.setattr(torch, "compile", compiler)
    for size in (64, 32, 96):
        rng = torch.Generator().manual_seed(0)
        list(maker.generate(network, SPEC, num_samples=size, batch_size=size, rng=rng, report=lambda _: None))
    assert compiled == [64, 96]


# ------------------------------------------------------------------------------------ divergence to NaN


class Steady:
    """An objective with a constant slope, whose loss turns to NaN after some calls."""

    def __init__(self, good_calls: int) -> None:
        self.left = good_calls

    def __call__(
        self, inputs: Tensor, _labels: Tensor, _rest: object, _maps: object = ()
    ) -> tuple[Tensor, Tensor, Tensor]:
        self.left -= 1
        value = 1.0 if self.left >= 0 else math.nan
        return torch.tensor(value), torch.full_like(inputs, value), torch.zeros(2, 0)

    def empty_pool(self) -> Tensor:
        return torch.zeros(2, 0)


def optimize(good_calls: int, iterations: int, scale: float = 1.0) -> Tensor:
    batch = torch.zeros(4, 1, 2)
    objective: Any = Steady(good_calls)
    optimize_inputs(
        [batch],
        [torch.zeros(4)],
        objective,
        InputSpec((1, 2)),
        InversionOptions(iterations=iterations, schedule="constant"),
        torch.Generator(),
        lambda _: None,
        scale=scale,
    )
    return batch


def test_a_run_that_diverges_stops_with_the_last_good_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimization, "SNAPSHOT_INTERVAL", 5)
    kept: list[Tensor] = []
    original = optimization._snapshot

    def watched(pace: object, loss: float, variables: list[Tensor], *rest: Any) -> None:
        kept[:] = variables
        original(pace, loss, variables, *rest)

    monkeypatch.setattr(optimization, "_snapshot", watched)
    message = (
        r"The synthesis diverged: the loss was nan at iteration 11 of 30 \(learning rate 0.25, precision auto\). The "
        r"last good inputs were restored, and finished shards are kept. Lower the learning rate or the weights of the "
        r"priors, or choose precision=float32."
    )
    with pytest.raises(DivergedError, match=message):
        optimize(good_calls=8, iterations=30)
    assert torch.equal(kept[0].detach(), optimize(good_calls=100, iterations=6))
    assert kept[0].detach().abs().min() > 0


def test_the_learning_rate_is_in_units_of_the_input() -> None:
    small, large = (optimize(good_calls=100, iterations=6, scale=scale) for scale in (1.0, 50.0))
    torch.testing.assert_close(small, torch.full_like(small, -6 * 0.25))
    torch.testing.assert_close(large, 50 * small)


def test_a_learning_rate_beyond_all_bounds_is_reported(registry: Registry, network: nn.Module) -> None:
    with pytest.raises(DivergedError, match="Lower the learning rate"):
        make(registry, "bns", network, 32, iterations=30, learning_rate=1e30, clamp=False)


@pytest.mark.parametrize(("plateau", "expected"), [(0.0, 60), (0.01, 31)])
def test_a_loss_that_no_longer_falls_ends_the_run(plateau: float, expected: int) -> None:
    batch, events = torch.zeros(4, 1, 2), []
    objective: Any = Steady(good_calls=100)
    pace = StepSchedule(60)
    options = InversionOptions(iterations=60, plateau=plateau)
    arguments = ([batch], [torch.zeros(4)], objective, InputSpec((1, 2)), options, torch.Generator(), events.append)
    optimize_inputs(*arguments, scale=1.0, pace=pace)
    assert pace.done == expected
    assert (events[-1].completed, events[-1].total) == (expected, expected)


def test_the_learning_rate_falls_along_a_half_cosine() -> None:
    options = BatchNormOptions(iterations=100, learning_rate=2.0)
    rates = [learning_rate_at(step / 100, options) for step in range(100)]
    assert rates[0] == 2.0
    assert rates == sorted(rates, reverse=True)
    assert rates[50] == pytest.approx(1.0)
    assert learning_rate_at(0.99, BatchNormOptions(learning_rate=2.0, schedule="constant")) == 2.0


def test_few_samples_are_optimized_at_a_size_that_has_statistics(
    registry: Registry, network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    original = InversionObjective.__call__

    def watched(self: InversionObjective, inputs: Tensor, *rest: Any) -> Any:
        sizes.append(len(inputs))
        return original(self, inputs, *rest)

    monkeypatch.setattr(InversionObjective, "__call__", watched)
    make(registry, "bns", network, 2, iterations=1)
    assert sizes == [SMALLEST_BATCH]


# ------------------------------------------------------------------------------------- the border of training


@pytest.mark.slow
def test_inputs_fit_the_network_as_training_showed_its_images() -> None:
    """The stored statistics are those of images over a border; the synthetic ones, shown plainly, have none."""
    spec = InputSpec((3, 16, 16), value_range=(-2.0, 2.0))
    assert spec.bounds is not None
    images = 0.4 * torch.randn(512, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8, momentum=None)).train()
        model(augment(images, Augmentation(flip=True, padding=2), torch.Generator().manual_seed(5), spec.bounds[0]))
    model.eval()
    spreads = {}
    for border in (0, None):
        options = BatchNormOptions(iterations=60, precision="float32", compile="never", padding=border)
        generator = BatchNormGenerator(options)
        rng = torch.Generator().manual_seed(0)
        made = generator.generate(model, spec, num_samples=64, batch_size=64, rng=rng, report=lambda _event: None)
        spreads[border] = float(torch.cat([batch.inputs for batch in made]).std())
    true = float(images.std())
    assert abs(spreads[None] - true) < 0.5 * abs(spreads[0] - true), (spreads, true)


def test_noise_of_a_known_range_is_centered_in_it() -> None:
    assert known_noise(InputSpec((1, 4), value_range=(-2.0, 6.0))) == Noise(2.0, 2.0)
    assert known_noise(InputSpec((1, 4))) == Noise()
    assert known_noise(InputSpec((1, 4), (0.5,), (0.2,), (0.0, 1.0))) == Noise()


def test_gaussian_noise_of_raw_values_has_the_middle_and_a_quarter_of_their_range(network: nn.Module) -> None:
    spec = InputSpec((3, 8, 8), value_range=(10.0, 30.0), num_classes=SPEC.num_classes)
    generator = GaussianGenerator(GaussianOptions(clamp=False))
    (batch,) = generator.generate(
        network, spec, num_samples=64, batch_size=64, rng=torch.Generator().manual_seed(0), report=lambda _: None
    )
    assert float(batch.inputs.mean()) == pytest.approx(20.0, abs=0.2)
    assert float(batch.inputs.std()) == pytest.approx(5.0, abs=0.2)
