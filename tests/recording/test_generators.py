"""Generators from activation records: their losses against NumPy, what they rebuild, and what they refuse."""

from __future__ import annotations

import shutil
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

import dfq_plugins
from dfq_plugins.demo.network import DIGITS_SPEC, digits_network
from dfq_plugins.errors import DataError, ModelError, UsageError
from dfq_plugins.host.registry import get_registry
from dfq_plugins.model_state import frozen_copy
from dfq_plugins.network.digest import model_digest
from dfq_plugins.recording.factors import ClassGaussians, pack, unpack
from dfq_plugins.recording.info import TENSOR_FILE
from dfq_plugins.recording.run import record
from dfq_plugins.recording.units import UnitReader
from dfq_plugins.testing import GeneratorContract
from dfq_plugins.types import InputSpec, TimeBudget

if TYPE_CHECKING:
    from pathlib import Path

    from dfq_plugins.recording.record import ActivationRecord

SPEC = InputSpec((1, 6, 6), (0.2,), (0.25,), (0.0, 1.0), 3)
NAMES = ("record-top", "record-all", "record-all-dropout", "record-spectral", "record-spectral-pairs")
SIZES = (36, 12, 3)
"""Units of the plain network's layers."""


def plain_network() -> nn.Sequential:
    """A convolution and two linear layers with rectifiers, without BatchNorm, that knows the data's classes."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = nn.Sequential(
            *(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            *(nn.Linear(36, 12), nn.ReLU(), nn.Linear(12, 3)),
        )
        inputs, labels = labeled()
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs), labels).backward()
            optimizer.step()
    return network.eval().requires_grad_(requires_grad=False)


def labeled(count: int = 240) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs of which each class is bright in another pair of rows."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3
    inputs = 0.4 * torch.randn(count, 1, 6, 6, generator=rng) - 0.4
    for label in range(3):
        inputs[labels == label, :, 2 * label : 2 * label + 2] += 2
    return inputs.clamp(-0.8, 3.2), labels


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return plain_network()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, network: nn.Module) -> ActivationRecord:
    folder = tmp_path_factory.mktemp("records") / "plain"
    return record(network, labeled(), SPEC, output=folder, options={"dropout_filters": 3})


def generator_of(name: str, recorded: ActivationRecord, **options: Any) -> Any:
    return get_registry().create("generator", name, {"record": str(recorded.folder), **options})


def made(name: str, network: nn.Module, recorded: ActivationRecord, count: int = 24, **options: Any) -> Any:
    """Inputs and labels of a data set."""
    settings = {"record": str(recorded.folder), "iterations": 150, **options}
    data = dfq_plugins.synthesize(network, SPEC, generator=name, num_samples=count, options=settings)
    samples = [data[index] for index in range(count)]
    return torch.stack([sample.inputs for sample in samples]), torch.tensor([int(sample.labels) for sample in samples])


# ------------------------------------------------------------------------------------- targets and losses


def test_samples_have_their_classs_mean_and_covariance() -> None:
    factors = torch.tensor([[[2.0, 0.0], [1.5, 0.5]], [[0.1, 0.0], [-3.0, 1.0]]])
    gaussians = ClassGaussians(torch.tensor([[1.0, -1.0], [5.0, 0.0]]), pack(factors))
    drawn = gaussians.sample(torch.arange(40_000) % 2, torch.Generator().manual_seed(0)).numpy()
    for label in range(2):
        chosen = drawn[label::2]
        np.testing.assert_allclose(chosen.mean(0), gaussians.mean[label], atol=0.06)
        # L L^T, not L^T L: with rows for samples the noise is multiplied by the transposed factor.
        np.testing.assert_allclose(np.cov(chosen.T), factors[label] @ factors[label].T, atol=0.12)


def drawn_targets(recorded: ActivationRecord, names: list[str], labels: torch.Tensor, seed: int) -> list[np.ndarray]:
    """What a generator aims at, by hand, from the same draws: mean + z L^T for each sample."""
    rng = torch.Generator().manual_seed(seed)
    targets = []
    for name in names:
        mean, packed = recorded.tensors[f"{name}.mean"].numpy(), recorded.tensors[f"{name}.factor"]
        noise = torch.randn(len(labels), mean.shape[1], generator=rng).numpy()
        lower = [unpack(part).numpy() for part in packed]
        targets.append(np.stack([mean[k] + lower[k] @ z for k, z in zip(labels.tolist(), noise, strict=True)]))
    return targets


@pytest.fixture(scope="module")
def units(network: nn.Module) -> list[torch.Tensor]:
    with UnitReader(network, ["4", "6"], temperature=8.0) as reader:
        return reader.read(labeled(9)[0])


LABELS = torch.tensor([0, 1, 2, 2, 1, 0, 0, 1, 2])


def loss_of(name: str, recorded: ActivationRecord, units: list[torch.Tensor]) -> float:
    loss, _ = generator_of(name, recorded).aim(LABELS, torch.Generator().manual_seed(3))
    return float(loss(units))


def test_the_loss_of_the_top_layer(recorded: ActivationRecord, units: list[torch.Tensor]) -> None:
    (target,) = drawn_targets(recorded, ["top"], LABELS, 3)
    expected = ((np.maximum(target, 0) - np.maximum(units[2].numpy(), 0)) ** 2).mean()
    assert loss_of("record-top", recorded, units) == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_all_layers_is_a_sum_of_squares_by_width(
    recorded: ActivationRecord, units: list[torch.Tensor]
) -> None:
    targets = drawn_targets(recorded, ["all.0", "all.1", "all.2"], LABELS, 3)
    expected = sum(
        ((np.maximum(target, 0) - np.maximum(found.numpy(), 0)) ** 2).sum(1).mean() / width
        for target, found, width in zip(targets, units, SIZES, strict=True)
    )
    assert loss_of("record-all", recorded, units) == pytest.approx(expected, rel=1e-5)


def test_layers_that_can_be_negative_are_compared_as_they_are(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.Tanh(), nn.Linear(5, 3)).eval()
    tanh = record(network, labeled(), SPEC, output=tmp_path / "r", options={"statistics": "all"})
    with UnitReader(network, ["3"], temperature=8.0) as reader, torch.no_grad():
        units = reader.read(labeled(9)[0])
    hidden, top = drawn_targets(tanh, ["all.0", "all.1"], LABELS, 3)
    expected = ((hidden - units[0].numpy()) ** 2).mean()
    expected += ((np.maximum(top, 0) - np.maximum(units[1].numpy(), 0)) ** 2).mean()
    assert loss_of("record-all", tanh, units) == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_the_spectral_record_is_a_sum_over_all_units(
    recorded: ActivationRecord, units: list[torch.Tensor]
) -> None:
    (coefficients,) = drawn_targets(recorded, ["spectral"], LABELS, 3)
    rebuilt = coefficients @ recorded.tensors["spectral.basis"].numpy().T
    expected = ((rebuilt - torch.cat(units, 1).numpy()) ** 2).sum(1).mean()
    assert loss_of("record-spectral", recorded, units) == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_layer_pairs_is_a_sum_over_pairs(recorded: ActivationRecord, units: list[torch.Tensor]) -> None:
    (coefficients,) = drawn_targets(recorded, ["pairs"], LABELS, 3)
    bases = [recorded.tensors[f"pairs.{number}.basis"].numpy() for number in range(2)]
    places = pairwise(accumulate((basis.shape[1] for basis in bases), initial=0))
    expected = sum(
        ((coefficients[:, start:end] @ basis.T - torch.cat(pair, 1).numpy()) ** 2).sum(1).mean()
        for (start, end), basis, pair in zip(places, bases, pairwise(units), strict=True)
    )
    assert loss_of("record-spectral-pairs", recorded, units) == pytest.approx(expected, rel=1e-5)


def test_a_dropout_filter_thins_the_network_and_the_targets(recorded: ActivationRecord, network: nn.Module) -> None:
    generator = generator_of("record-all-dropout", recorded)
    seen = set()
    for seed in range(12):
        loss, masks = generator.aim(LABELS, torch.Generator().manual_seed(seed))
        (number,) = (n for n in range(3) if torch.equal(recorded.masks(n)["4"], masks["4"]))
        seen.add(number)
        with UnitReader(network, ["4", "6"], temperature=8.0, masks=masks) as reader:
            units = reader.read(labeled(9)[0])
        assert units[0].shape == (9, int(masks["4"].sum()))
        assert float(loss(units)) > 0
    assert seen == {0, 1, 2}


# ------------------------------------------------------------------------------------- what comes out


def generated(generator: Any, network: nn.Module, count: int, losses: list[float] | None = None) -> torch.Tensor:
    """Inputs that a generator makes, always from the same draws, and the losses that it reports."""
    batches = generator.generate(
        frozen_copy(network),
        SPEC,
        num_samples=count,
        batch_size=count,
        rng=torch.Generator().manual_seed(0),
        report=lambda event: None if losses is None else losses.append(event.metrics["loss"]),
    )
    return torch.cat([batch.inputs for batch in batches])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_inputs_come_nearer_to_what_was_recorded(name: str, recorded: ActivationRecord, network: nn.Module) -> None:
    losses: list[float] = []
    generated(generator_of(name, recorded, iterations=200, learning_rate=0.02), network, 24, losses)
    assert losses[-1] < (0.9 if name == "record-top" else 0.5) * losses[0]


@pytest.mark.parametrize("name", ["record-all", "record-spectral", "record-spectral-pairs"])
def test_the_network_sees_the_classes_that_were_rebuilt(
    name: str, recorded: ActivationRecord, network: nn.Module
) -> None:
    inputs, labels = made(name, network, recorded)
    assert sorted(labels.bincount().tolist()) == [8, 8, 8]
    assert float((network(inputs).argmax(1) == labels).float().mean()) > 0.8
    assert float(inputs.min()) >= -0.8 - 1e-5
    assert float(inputs.max()) <= 3.2 + 1e-5


def test_a_logit_below_zero_gives_the_top_layers_record_no_direction(recorded: ActivationRecord) -> None:
    loss, _ = generator_of("record-top", recorded).aim(torch.tensor([0, 0]), torch.Generator().manual_seed(0))
    logits = torch.tensor([[-0.1, -1.0, -1.0], [0.1, -1.0, -1.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(loss([logits]), logits)
    assert bool((gradient[0] == 0).all())
    assert float(gradient[1, 0]) < 0


def test_spectral_inputs_have_the_bright_rows_of_their_class(recorded: ActivationRecord, network: nn.Module) -> None:
    inputs, labels = made("record-spectral", network, recorded, iterations=300)
    rows = inputs.mean((1, 3)).view(-1, 3, 2).mean(2)  # (samples, pairs of rows)
    assert float((rows.argmax(1) == labels).float().mean()) > 0.8


def test_each_input_is_rebuilt_for_itself(recorded: ActivationRecord, network: nn.Module) -> None:
    whole, _ = made("record-spectral", network, recorded, step_samples=None)
    assert not torch.equal(whole[0], whole[3])
    spread = whole.std(0).mean()
    assert float(spread) > 0.05


def test_the_start_and_the_step_are_shares_of_the_valid_range(recorded: ActivationRecord, network: nn.Module) -> None:
    settings = {"iterations": 1, "clamp": False, "step_samples": None}
    start = generated(generator_of("record-all", recorded, learning_rate=1e-9, **settings), network, 64)
    raw = start * 0.25 + 0.2
    assert float(raw.mean()) == pytest.approx(0.15, abs=0.01)
    assert float(raw.std()) == pytest.approx(0.1, abs=0.01)
    stepped = generated(generator_of("record-all", recorded, **settings), network, 64)
    moved = ((stepped - start) * 0.25).abs()
    assert float(moved.max()) == pytest.approx(0.07, rel=1e-2)  # Adam's first step is the learning rate


def test_the_defaults_are_the_papers_constants() -> None:
    options = get_registry().options("generator", "record-spectral", {"record": "r"})
    assert (options.iterations, options.step_samples, options.schedule) == (1000, 64, "constant")
    assert (options.learning_rate, options.start_mean, options.start_std) == (0.07, 0.15, 0.1)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_bytes(name: str, recorded: ActivationRecord, network: nn.Module) -> None:
    first, second = (made(name, network, recorded, 7, iterations=3, step_samples=4)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_the_model_stays_as_it_was(recorded: ActivationRecord, network: nn.Module) -> None:
    before, state = model_digest(network), torch.get_rng_state()
    made("record-all-dropout", network, recorded, iterations=2)
    assert model_digest(network) == before
    assert torch.equal(state, torch.get_rng_state())
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_hooks_are_gone_also_after_an_error(recorded: ActivationRecord, network: nn.Module) -> None:
    own = frozen_copy(network)

    def fail(_: Any) -> None:
        raise KeyboardInterrupt

    batches = generator_of("record-spectral", recorded).generate(
        own, SPEC, num_samples=4, batch_size=4, rng=torch.Generator(), report=fail
    )
    with pytest.raises(KeyboardInterrupt):
        list(batches)
    assert not any(module._forward_pre_hooks for module in own.modules())


def test_a_budget_of_time_is_kept(recorded: ActivationRecord, network: nn.Module) -> None:
    budget = TimeBudget(0.5, 0.5)
    batches = generator_of("record-all", recorded, iterations=100_000).generate(
        frozen_copy(network),
        SPEC,
        num_samples=100,
        batch_size=100,
        rng=torch.Generator(),
        report=lambda _: None,
        budget=budget,
    )
    assert sum(len(batch.inputs) for batch in batches) == 100
    assert budget.iterations is not None
    assert 10 <= budget.iterations < 100_000


@pytest.mark.slow
@pytest.mark.parametrize("calibrator", ["torch-ao", "pytorch-quantization", "brevitas"])
def test_the_inputs_feed_every_calibrator(calibrator: str, recorded: ActivationRecord, network: nn.Module) -> None:
    settings = {"record": str(recorded.folder), "iterations": 100}
    data = dfq_plugins.synthesize(network, SPEC, generator="record-spectral", num_samples=32, options=settings)
    run = dfq_plugins.run_quantization(network, data, calibrator=calibrator)
    assert run.agreement > 0.8


def test_a_record_of_channels_rebuilds_a_residual_network_with_batch_norm(
    tmp_path: Path, tiny_network: nn.Module, tiny_spec: InputSpec
) -> None:
    inputs = torch.randn(200, 3, 8, 8, generator=torch.Generator().manual_seed(0)).clamp(-2, 2)
    folder = tmp_path / "r"
    options = {"units": "channel", "dropout_filters": 1}
    record(tiny_network, (inputs, torch.arange(200) % 4), tiny_spec, output=folder, options=options)
    for name in NAMES:
        data = dfq_plugins.synthesize(
            tiny_network,
            tiny_spec,
            generator=name,
            num_samples=4,
            options={"record": str(folder), "iterations": 2},
        )
        assert len(data) == 4


class TestContracts(GeneratorContract):
    @pytest.fixture(params=NAMES)
    def generator(self, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
        folder = tmp_path_factory.getbasetemp() / "digits-record"
        if not folder.exists():
            inputs = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))
            options = {"units": "channel", "dropout_filters": 1}
            record(digits_network(), (inputs, torch.arange(60) % 10), DIGITS_SPEC, output=folder, options=options)
        return get_registry().create("generator", request.param, {"record": str(folder), "iterations": 2})


# ------------------------------------------------------------------------------------- data sets


def test_a_set_is_known_to_be_of_its_very_record(
    tmp_path: Path, recorded: ActivationRecord, network: nn.Module
) -> None:
    settings = {"record": str(recorded.folder), "iterations": 2}
    data = dfq_plugins.synthesize(
        network, SPEC, generator="record-top", num_samples=4, options=settings, output=tmp_path / "set"
    )
    assert data.manifest.generator.options["record_sha256"] == recorded.info.sha256
    assert data.manifest.labels == "conditional"
    other = tmp_path / "other"
    record(network, labeled(90), SPEC, output=other, options={"statistics": "top"})
    folder = tmp_path / "moved"
    shutil.copytree(recorded.folder, folder)
    settings["record"] = str(folder)
    dfq_plugins.synthesize(
        network, SPEC, generator="record-top", num_samples=4, options=settings, output=tmp_path / "set2"
    )
    shutil.rmtree(folder)
    shutil.copytree(other, folder)
    with pytest.raises(DataError, match="record_sha256"):
        dfq_plugins.synthesize(
            network, SPEC, generator="record-top", num_samples=8, options=settings, output=tmp_path / "set2"
        )
    with pytest.raises(DataError, match=rf"has changed: its SHA-256 is \w+, but record_sha256 requires {'0' * 64}"):
        made("record-top", network, recorded, record_sha256="0" * 64)


# ------------------------------------------------------------------------------------- what is refused


def test_a_generator_without_a_record_says_where_to_get_one() -> None:
    with pytest.raises(UsageError, match=r"needs a record: set the option record=FOLDER.*makes it with dfq record"):
        get_registry().create("generator", "record-all")


def test_a_record_of_another_model_is_refused_with_both_digests(
    tmp_path: Path, recorded: ActivationRecord, network: nn.Module
) -> None:
    other = frozen_copy(network)
    other[6].bias += 1
    with pytest.raises(ModelError, match="was made from another model") as caught:
        dfq_plugins.synthesize(
            other,
            SPEC,
            generator="record-spectral",
            num_samples=4,
            options={"record": str(recorded.folder)},
            output=tmp_path / "set",
        )
    assert recorded.info.model_digest in str(caught.value)
    assert model_digest(other) in str(caught.value)
    assert not (tmp_path / "set").exists()


def test_a_record_without_the_statistic_is_refused(tmp_path: Path, network: nn.Module) -> None:
    top = record(network, labeled(), SPEC, output=tmp_path / "r", options={"statistics": "top"})
    with pytest.raises(DataError, match=r"holds top, but not 'spectral-pairs'\. Use the generator of one of these, or"):
        made("record-spectral-pairs", network, top)
    every = record(network, labeled(), SPEC, output=tmp_path / "all", options={"statistics": "all"})
    with pytest.raises(DataError, match=r"holds no dropout filters\. Use record-all, or record the model again"):
        made("record-all-dropout", network, every)


def test_a_truncated_record_is_refused_before_anything_is_written(
    tmp_path: Path, recorded: ActivationRecord, network: nn.Module
) -> None:
    folder = tmp_path / "r"
    shutil.copytree(recorded.folder, folder)
    whole = (folder / TENSOR_FILE).read_bytes()
    (folder / TENSOR_FILE).write_bytes(whole[: len(whole) // 2])
    settings = {"record": str(folder)}
    with pytest.raises(DataError, match="is damaged: its SHA-256 should be"):
        dfq_plugins.synthesize(
            network, SPEC, generator="record-all", num_samples=4, options=settings, output=tmp_path / "set"
        )
    assert not (tmp_path / "set").exists()
