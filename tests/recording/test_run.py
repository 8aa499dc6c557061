"""Recording: the statistics against NumPy and SciPy, what is refused, what stays as it was, and what the files hold."""

from __future__ import annotations

import json
import logging
import math
import weakref
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from torch import nn

import dfq_plugins
from dfq_plugins.errors import DataError, ModelError, UsageError
from dfq_plugins.network.digest import model_digest
from dfq_plugins.recording.factors import factor, unpack
from dfq_plugins.recording.graph import consecutive_edges, fourier_basis, strongest_waves
from dfq_plugins.recording.info import INFO_FILE, TENSOR_FILE, NoiseRecord
from dfq_plugins.recording.moments import ClassMoments, LayerMoments
from dfq_plugins.recording.noise import add_noise, clipped, failure_probability, noise_multiplier, sensitivity
from dfq_plugins.recording.options import RecordingOptions
from dfq_plugins.recording.record import ActivationRecord
from dfq_plugins.recording.run import Recording, record
from dfq_plugins.recording.units import UnitReader, find_layers
from dfq_plugins.types import Batch, InputSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SPEC = InputSpec((1, 6, 6), (0.2,), (0.25,), (0.0, 1.0), 3)
"""What the plain network takes."""


def plain_network() -> nn.Sequential:
    """A convolution and two linear layers with rectifiers, without BatchNorm."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(
            *(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            *(nn.Linear(36, 12), nn.ReLU(), nn.Linear(12, 3)),
        ).eval()


def labeled(count: int = 240, classes: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs of the plain network, whose mean depends on the class."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    return torch.randn(count, 1, 6, 6, generator=rng) + labels.view(-1, 1, 1, 1), labels


def units_of(network: nn.Module, inputs: torch.Tensor, temperature: float = 8.0) -> list[np.ndarray]:
    """What the plain network's layers compute, by hand: the reference that recordings are compared with."""
    with torch.no_grad():
        pooled = network[:4](inputs)
        hidden = network[4:6](pooled)
        return [values.double().numpy() for values in (pooled, hidden, network[6](hidden) / temperature)]


def batches(data: tuple[torch.Tensor, torch.Tensor], size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    yield from zip(data[0].split(size), data[1].split(size), strict=True)


def made(folder: Path, data: Any = None, network: nn.Module | None = None, **options: Any) -> ActivationRecord:
    return record(network or plain_network(), data or labeled(), SPEC, output=folder, options=options)


# ------------------------------------------------------------------------------------- moments


@pytest.mark.parametrize("size", [1, 7, 240])
def test_moments_are_those_of_the_whole_set_whatever_the_batches(size: int) -> None:
    rng = np.random.default_rng(0)
    values = (rng.normal(size=(240, 5)) * [1, 1e-3, 10, 1, 0] + [1e4, 0, 0, -3, 2]).astype(np.float32)
    labels = rng.integers(0, 3, 240)
    moments = ClassMoments(3, 5)
    for start in range(0, 240, size):
        moments.add(torch.from_numpy(values[start : start + size]), torch.from_numpy(labels[start : start + size]))
    for label in range(3):
        chosen = values[labels == label].astype(np.float64)
        np.testing.assert_allclose(moments.mean[label], chosen.mean(0), rtol=1e-12)
        np.testing.assert_allclose(moments.covariance(label), np.cov(chosen.T, bias=True), rtol=1e-7, atol=1e-9)
        assert moments.counts[label] == len(chosen)


def test_joint_moments_hold_those_of_each_layer() -> None:
    rng = torch.Generator().manual_seed(0)
    units = [torch.randn(50, size, generator=rng) for size in (3, 4, 2)]
    labels = torch.arange(50) % 2
    joint, apart = LayerMoments((3, 4, 2), 2, joint=True), LayerMoments((3, 4, 2), 2, joint=False)
    joint.add(units, labels)
    apart.add(units, labels)
    for layer in range(3):
        torch.testing.assert_close(joint.mean(layer), apart.mean(layer))
        torch.testing.assert_close(joint.covariance(layer, 1), apart.covariance(layer, 1))
    whole = torch.cat(units, 1).double()
    torch.testing.assert_close(joint.second_moment(), whole.T @ whole / 50)


def test_memory_does_not_depend_on_the_number_of_samples(tmp_path: Path) -> None:
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0

    def stream() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        nonlocal most
        for number in range(60):
            inputs, labels = labeled(12, seed=number)
            alive.add(inputs)
            most = max(most, len(alive))
            yield inputs, labels

    recorded = made(tmp_path / "r", stream(), dropout_filters=1)
    assert sum(recorded.info.class_counts) == 720
    assert most <= 3  # batches at a time
    few, many = ((made(tmp_path / str(count), labeled(count)).folder / TENSOR_FILE) for count in (60, 600))
    assert few.stat().st_size == many.stat().st_size


# ------------------------------------------------------------------------------------- factors


def test_a_regular_covariance_has_numpys_factor_and_no_jitter() -> None:
    values = np.random.default_rng(0).normal(size=(50, 6))
    covariance = np.cov(values.T)
    lower, jitter = factor(torch.from_numpy(covariance))
    np.testing.assert_allclose(lower, np.linalg.cholesky(covariance))
    assert jitter == 0


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_a_singular_covariance_is_factored_with_the_least_jitter(rank: int) -> None:
    values = np.random.default_rng(0).normal(size=(rank, 6))
    covariance = torch.from_numpy(values.T @ values)
    lower, jitter = factor(covariance)
    assert 0 < jitter <= max(1e-7 * float(covariance.diagonal().mean()), 1e-12)
    torch.testing.assert_close(lower @ lower.T, covariance + jitter * torch.eye(6, dtype=torch.float64))


def test_a_matrix_that_is_no_covariance_is_not_factored() -> None:
    with pytest.raises(ValueError, match="not positive semidefinite, or not finite"):
        factor(torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64)))


# ------------------------------------------------------------------------------------- graph


def layered(weights: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    """The weight matrix of the layered graph."""
    layer = np.repeat(np.arange(len(sizes)), sizes)
    return np.where(np.abs(layer[:, None] - layer[None]) == 1, weights, 0.0)


def dense_reference(moment: np.ndarray, sizes: tuple[int, ...], weights: np.ndarray | None = None) -> np.ndarray:
    """The Fourier transform: NumPy's eigenvectors, and of eigenvalue 0 the principal axes of SciPy's null space."""
    adjacency = layered(moment if weights is None else weights, sizes)
    values, vectors = np.linalg.eigh(adjacency)
    null = scipy.linalg.null_space(adjacency, rcond=1e-9)
    axes = null @ np.linalg.svd(null.T @ moment @ null)[0] if null.size else null
    others = vectors[:, np.argsort(-np.abs(values))[: len(moment) - null.shape[1]]]
    return np.concatenate((others, axes), 1).T


def test_the_fourier_transform_is_the_inverse_of_the_eigenvectors() -> None:
    rng = np.random.default_rng(0)
    values = rng.random((40, 8))
    weights, sizes = values.T @ values / 40, (3, 4, 1)  # as many units in odd layers as in even: no eigenvalue is 0
    _, vectors = np.linalg.eig(layered(weights, sizes))
    forward = np.linalg.inv(vectors)
    moment = torch.from_numpy(weights)
    basis = fourier_basis(consecutive_edges(moment, sizes), moment).numpy()
    ours, theirs = basis.T @ values[0], forward @ values[0]
    # Each wave is known up to its sign and place: the sizes of the coefficients are what the definition fixes.
    np.testing.assert_allclose(np.sort(np.abs(ours)), np.sort(np.abs(theirs)), rtol=1e-8)
    np.testing.assert_allclose(basis @ ours, values[0], rtol=1e-10)


def test_waves_of_eigenvalue_zero_are_the_principal_axes_of_the_data() -> None:
    rng = np.random.default_rng(2)
    values = rng.random((50, 9))
    moment, sizes = values.T @ values / 50, (5, 2, 2)  # five waves at least
    adjacency = layered(moment, sizes)
    basis = fourier_basis(torch.from_numpy(adjacency), torch.from_numpy(moment)).numpy()
    scales = np.einsum("ij,ik,kj->j", basis, adjacency, basis)
    np.testing.assert_allclose(adjacency @ basis, basis * scales, atol=1e-12)
    np.testing.assert_allclose(basis @ basis.T, np.eye(9), atol=1e-12)
    null = basis[:, np.abs(scales) < 1e-9]
    assert null.shape[1] == 5
    correlation = null.T @ moment @ null
    np.testing.assert_allclose(correlation, np.diag(np.diag(correlation)), atol=1e-12)
    again = fourier_basis(torch.from_numpy(adjacency[::-1, ::-1].copy()), torch.from_numpy(moment[::-1, ::-1].copy()))
    np.testing.assert_allclose(
        np.sort(np.abs(values @ basis).mean(0)), np.sort(np.abs(values[:, ::-1] @ again.numpy()).mean(0))
    )


def test_the_strongest_waves_are_kept() -> None:
    rng = np.random.default_rng(1)
    values = rng.random((60, 10))
    moment, sizes = values.T @ values / 60, (5, 3, 2)
    coefficients = values @ dense_reference(moment, sizes).T
    strongest = np.sort(np.sqrt((coefficients**2).mean(0)))[::-1][:3]
    adjacency = consecutive_edges(torch.from_numpy(moment), sizes)
    waves = strongest_waves(adjacency, torch.from_numpy(moment), 0.25).numpy()
    assert waves.shape == (10, 3)
    np.testing.assert_allclose(np.sqrt(((values @ waves) ** 2).mean(0)), strongest, rtol=1e-8)


# ------------------------------------------------------------------------------------- what is recorded


def test_the_record_holds_the_classes_means_and_covariances(tmp_path: Path) -> None:
    network, (inputs, labels) = plain_network(), labeled()
    recorded = ActivationRecord.open(made(tmp_path / "r", batches((inputs, labels), 32), network).folder)
    assert [layer.name for layer in recorded.info.layers] == ["4", "6", "output"]
    units = units_of(network, inputs)
    for name, values in [("top", units[2]), *((f"all.{layer}", values) for layer, values in enumerate(units))]:
        gaussians = recorded.gaussians(name)
        for label in range(3):
            chosen = values[labels.numpy() == label]
            lower = unpack(gaussians.packed[label]).double().numpy()
            np.testing.assert_allclose(gaussians.mean[label], chosen.mean(0), rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(lower @ lower.T, np.cov(chosen.T, bias=True), rtol=1e-3, atol=1e-5)


def test_the_record_holds_the_spectral_coefficients_of_all_layers_together(tmp_path: Path) -> None:
    network, (inputs, labels) = plain_network(), labeled()
    recorded = made(tmp_path / "r", (inputs, labels), network, coefficients=0.2)
    units = np.concatenate(units_of(network, inputs), 1)
    basis = recorded.tensors["spectral.basis"].double().numpy()
    assert basis.shape == (51, math.ceil(0.2 * 51))
    np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-5)
    power = (units @ dense_reference(units.T @ units / len(units), (36, 12, 3)).T) ** 2
    np.testing.assert_allclose(
        np.sort(((units @ basis) ** 2).mean(0)), np.sort(power.mean(0))[-basis.shape[1] :], rtol=1e-3
    )
    gaussians = recorded.gaussians("spectral")
    for label in range(3):
        chosen = units[labels.numpy() == label] @ basis
        lower = unpack(gaussians.packed[label]).double().numpy()
        np.testing.assert_allclose(gaussians.mean[label], chosen.mean(0), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(lower @ lower.T, np.cov(chosen.T, bias=True), rtol=1e-3, atol=1e-4)


def test_each_pair_of_layers_has_a_graph_of_its_own(tmp_path: Path) -> None:
    network, (inputs, labels) = plain_network(), labeled()
    recorded = made(tmp_path / "r", (inputs, labels), network, statistics="spectral-pairs")
    units = units_of(network, inputs)
    coefficients = []
    for number, (first, second) in enumerate(pairwise(units)):
        pair = np.concatenate((first, second), 1)
        basis = recorded.tensors[f"pairs.{number}.basis"].double().numpy()
        transform = dense_reference(pair.T @ pair / len(pair), (first.shape[1], second.shape[1]))
        power = ((pair @ transform.T) ** 2).mean(0)
        np.testing.assert_allclose(np.sort(((pair @ basis) ** 2).mean(0)), np.sort(power)[-basis.shape[1] :], rtol=1e-3)
        coefficients.append(pair @ basis)
    together = np.concatenate(coefficients, 1)
    gaussians = recorded.gaussians("pairs")
    np.testing.assert_allclose(gaussians.mean[1], together[labels.numpy() == 1].mean(0), rtol=1e-3, atol=1e-4)
    lower = unpack(gaussians.packed[1]).double().numpy()
    np.testing.assert_allclose(
        lower @ lower.T, np.cov(together[labels.numpy() == 1].T, bias=True), rtol=1e-3, atol=1e-4
    )
    assert "spectral.basis" not in recorded.tensors


def test_a_graph_of_mean_activations_weighs_an_edge_by_the_product_of_two_means(tmp_path: Path) -> None:
    network, data = plain_network(), labeled()
    recorded = made(tmp_path / "r", data, network, graph="mean-activation", statistics="spectral", coefficients=0.06)
    mean = np.concatenate(units_of(network, data[0]), 1).mean(0)
    layer = np.repeat([0, 1, 2], [36, 12, 3])
    adjacency = np.where(np.abs(layer[:, None] - layer[None]) == 1, np.outer(mean, mean), 0)
    waves = recorded.tensors["spectral.basis"].double().numpy()
    assert any(
        np.allclose(adjacency @ wave, (wave @ adjacency @ wave) * wave, atol=1e-3)
        and abs(wave @ adjacency @ wave) > 1e-3
        for wave in waves.T
    )


def test_dropout_filters_are_recorded_with_the_statistics_under_them(tmp_path: Path) -> None:
    network, (inputs, labels) = plain_network(), labeled()
    recorded = made(tmp_path / "r", (inputs, labels), network, dropout_filters=2, seed=5)
    masks = [recorded.masks(number) for number in range(2)]
    assert not torch.equal(masks[0]["4"], masks[1]["4"])
    for number, mask in enumerate(masks):
        with torch.no_grad():
            thinned = inputs * mask["input"] / mask["input"].float().mean()
            pooled = network[:4](thinned) * mask["4"] / mask["4"].float().mean()
            hidden = network[4:6](pooled) * mask["6"] / mask["6"].float().mean()
            logits = network[6](hidden) / 8
        for layer, values in enumerate((pooled[:, mask["4"]], hidden[:, mask["6"]], logits)):
            mean = recorded.tensors[f"dropout.{number}.all.{layer}.mean"]
            torch.testing.assert_close(mean[2], values[labels == 2].mean(0), rtol=1e-4, atol=1e-5)
    again = made(tmp_path / "again", (inputs, labels), network, dropout_filters=2, seed=5)
    assert torch.equal(again.masks(1)["6"], masks[1]["6"])


def test_filters_keep_most_of_the_input_and_half_of_the_units(tmp_path: Path) -> None:
    recorded = made(tmp_path / "r", dropout_filters=60, statistics="all")
    shares = {
        name: np.mean([recorded.masks(number)[name].float().mean() for number in range(60)]) for name in ("input", "4")
    }
    assert shares["input"] == pytest.approx(0.8, abs=0.03)
    assert shares["4"] == pytest.approx(0.5, abs=0.04)


def test_without_labels_the_model_names_the_classes(tmp_path: Path) -> None:
    network, (inputs, _) = plain_network(), labeled()
    with torch.no_grad():
        network[6].bias -= network(inputs).mean(0)  # so that it sees every class
    found = network(inputs).argmax(1)
    counts = found.bincount(minlength=3).tolist()
    assert 0 not in counts
    recorded = made(tmp_path / "r", [inputs[:100], inputs[100:]], network)
    assert (recorded.info.labels, list(recorded.info.class_counts)) == ("teacher", counts)
    given = made(tmp_path / "given", (inputs, found), network)
    assert given.info.labels == "given"
    assert torch.equal(given.tensors["all.0.mean"], recorded.tensors["all.0.mean"])


def test_data_come_as_batches_records_loaders_and_tensors(tmp_path: Path) -> None:
    inputs, labels = labeled()
    whole = made(tmp_path / "pair", (inputs, labels))
    set_ = torch.utils.data.TensorDataset(inputs, labels)
    for name, data in {
        "records": [Batch(*part) for part in batches((inputs, labels), 60)],
        "loader": torch.utils.data.DataLoader(set_, batch_size=50),
        "lists": [list(part) for part in batches((inputs, labels), 60)],
    }.items():
        other = made(tmp_path / name, data)
        torch.testing.assert_close(other.tensors["all.1.mean"], whole.tensors["all.1.mean"])


# ------------------------------------------------------------------------------------- layers and units


def test_layers_are_what_weighted_layers_read(tiny_network: nn.Module, tiny_spec: InputSpec) -> None:
    layers = find_layers(tiny_network, tiny_spec, None, "full")
    assert [(layer.name, layer.shape, layer.units) for layer in layers] == [
        ("conv", (8, 8, 8), 512),
        ("linear", (8,), 8),
        ("output", (4,), 4),
    ]
    assert all(layer.rectified for layer in layers)
    channels = find_layers(tiny_network, tiny_spec, None, "channel")
    assert [layer.units for layer in channels] == [8, 8, 4]


def test_layers_that_can_be_negative_are_known_as_such() -> None:
    network = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    layers = find_layers(network, InputSpec((4,)), None, "full")
    assert [layer.rectified for layer in layers] == [False, True]


def test_layers_can_be_named(tmp_path: Path) -> None:
    recorded = made(tmp_path / "r", layers=("2", "6"))
    assert [(layer.name, layer.shape) for layer in recorded.info.layers] == [
        ("2", (4, 6, 6)),  # the rectified convolution before it is pooled
        ("6", (12,)),
        ("output", (3,)),
    ]


def test_the_units_of_tokens_and_channels_are_means_over_places() -> None:
    network = nn.Sequential(nn.Conv1d(2, 3, 1), nn.Conv1d(3, 2, 1), nn.Linear(5, 4), nn.Flatten(), nn.Linear(8, 2))
    inputs = torch.randn(6, 2, 5, generator=torch.Generator().manual_seed(0))
    with UnitReader(network, ["1", "2"], units="channel") as reader:
        convolution, tokens, _ = reader.read(inputs)
    first = network[0](inputs)
    torch.testing.assert_close(convolution, first.mean(2))
    torch.testing.assert_close(tokens, network[1](first).mean(1))


def test_top_alone_reads_no_hidden_layer(tmp_path: Path) -> None:
    recorded = made(tmp_path / "r", statistics="top")
    assert [layer.name for layer in recorded.info.layers] == ["output"]
    assert set(recorded.tensors) == {"top.mean", "top.factor"}


# ------------------------------------------------------------------------------------- noise


@pytest.mark.parametrize(("epsilon", "delta"), [(0.1, 1e-5), (1.0, 1e-5), (8.0, 1e-6), (50.0, 1e-9)])
def test_the_noise_is_the_least_that_keeps_the_budget(epsilon: float, delta: float) -> None:
    sigma = noise_multiplier(epsilon, delta, 1.0)
    normal = scipy.stats.norm.cdf
    reached = normal(0.5 / sigma - epsilon * sigma) - math.exp(epsilon) * normal(-0.5 / sigma - epsilon * sigma)
    assert reached == pytest.approx(delta, rel=1e-2)
    assert failure_probability(0.99 * sigma, epsilon, 1.0) > delta
    assert noise_multiplier(epsilon, delta, 3.0) == pytest.approx(3 * sigma)


def test_one_sample_changes_what_is_released_by_no_more_than_the_sensitivity() -> None:
    rng = torch.Generator().manual_seed(0)
    units = clipped([torch.randn(1, 4, generator=rng) * 9, torch.randn(1, 3, generator=rng)], 1.0)
    joint = torch.cat(units, 1)
    assert float(joint.norm()) == pytest.approx(1, abs=1e-6)
    upper = (joint.T @ joint).triu()
    assert float(1 + joint.square().sum() + upper.square().sum()) <= sensitivity(1) ** 2 + 1e-6
    short = clipped([torch.full((1, 2), 0.1)], 1.0)
    torch.testing.assert_close(short[0], torch.full((1, 2), 0.1))


def test_noise_has_the_deviation_that_was_asked_for() -> None:
    means, counts = [], []
    for seed in range(300):
        moments = LayerMoments((2,), 1, joint=False)
        moments.add([torch.zeros(1000, 2)], torch.zeros(1000, dtype=torch.long))
        noise = NoiseRecord(1.0, 1e-5, clip_norm=3.0, multiplier=5.0)
        add_noise([moments], noise, torch.Generator().manual_seed(seed))
        means.append(moments.groups[0].mean[0].numpy() * float(moments.counts[0]))
        counts.append(float(moments.counts[0]))
        assert float(torch.linalg.eigvalsh(moments.covariance(0, 0)).min()) > -1e-9
    assert np.std(means) == pytest.approx(15, rel=0.1)
    assert np.std(counts) == pytest.approx(5, rel=0.15)


def test_a_noisy_record_says_what_its_noise_is_good_for(tmp_path: Path) -> None:
    exact = made(tmp_path / "exact", statistics="top")
    noisy = made(tmp_path / "noisy", statistics="top", epsilon=1e6, clip_norm=100.0)
    torch.testing.assert_close(noisy.tensors["top.mean"], exact.tensors["top.mean"], rtol=0.05, atol=0.05)
    assert not torch.equal(noisy.tensors["top.mean"], exact.tensors["top.mean"])
    assert noisy.info.noise is not None
    assert noisy.info.noise.clip_norm == 100
    assert "differentially private with respect to adding or removing one recorded sample" in noisy.info.reveals[-1]
    assert "does not cover the model itself" in noisy.info.reveals[-1]
    assert "Treat the record like the data" in exact.info.reveals[-1]


def test_noise_is_never_the_same_twice(tmp_path: Path) -> None:
    first, second = (made(tmp_path / name, statistics="all", epsilon=1.0) for name in ("a", "b"))
    assert not torch.equal(first.tensors["all.1.mean"], second.tensors["all.1.mean"])


def test_the_usual_norm_is_no_function_of_the_data(tmp_path: Path) -> None:
    first = made(tmp_path / "a", statistics="all", epsilon=1.0)
    inputs, labels = labeled()
    second = made(tmp_path / "b", (100 * inputs, labels), statistics="all", epsilon=1.0)
    assert first.info.noise == second.info.noise


def test_spectral_records_take_noise_too(tmp_path: Path) -> None:
    recorded = made(tmp_path / "r", epsilon=2.0, dropout_filters=1)
    assert all(bool(tensor.isfinite().all()) for tensor in recorded.tensors.values() if tensor.is_floating_point())
    assert recorded.info.noise is not None
    assert recorded.info.noise.multiplier == pytest.approx(noise_multiplier(2.0, 1e-5, math.sqrt(5)))


# ------------------------------------------------------------------------------------- what stays, what is written


def test_the_model_and_the_process_stay_as_they_are(tmp_path: Path) -> None:
    network = plain_network().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state, dtype = torch.get_rng_state(), torch.get_default_dtype()
    made(tmp_path / "r", network=network, dropout_filters=1)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in network.modules())
    assert torch.equal(state, torch.get_rng_state())
    assert torch.get_default_dtype() is dtype
    assert torch.is_grad_enabled()


def test_the_same_data_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        made(tmp_path / name, dropout_filters=1)
    for file in (INFO_FILE, TENSOR_FILE):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_description_names_the_model_and_what_it_reveals(tmp_path: Path) -> None:
    network = plain_network()
    made(tmp_path / "r", network=network)
    written = json.loads((tmp_path / "r" / INFO_FILE).read_text())
    assert written["model_digest"] == model_digest(network)
    assert written["class_counts"] == [80, 80, 80]
    assert written["temperature"] == 8
    text = " ".join(written["reveals"])
    for phrase in ("3 classes", "48 hidden units", "spectral coefficients", "No noise was added"):
        assert phrase in text
    assert "class has only" not in text


def test_few_samples_and_layers_as_large_as_the_input_are_pointed_out(tmp_path: Path) -> None:
    recorded = made(tmp_path / "few", labeled(30), layers=("4", "6"))
    text = " ".join(recorded.info.reveals)
    assert "A class has only 10 samples" in text
    assert "mean images" in text  # 4 x 3 x 3 pooled units are as many as the 36 pixels


def test_progress_is_reported(tmp_path: Path) -> None:
    events: list[Any] = []
    record(plain_network(), labeled(600), SPEC, output=tmp_path / "r", listeners=[events.append])
    assert [(event.stage, event.completed, event.total) for event in events] == [
        ("record", 256, 600),
        ("record", 512, 600),
        ("record", 600, 600),
    ]


def test_it_is_a_public_name() -> None:
    assert dfq_plugins.record is record


# ------------------------------------------------------------------------------------- what is refused


def refused(tmp_path: Path, **settings: Any) -> Callable[[], None]:
    data = settings.pop("data", None)
    network = settings.pop("network", None)

    def attempt() -> None:
        try:
            made(tmp_path / "r", data, network, **settings)
        finally:
            assert not (tmp_path / "r").exists(), "nothing half-written stays"

    return attempt


def test_a_class_without_samples_is_refused(tmp_path: Path) -> None:
    inputs, labels = labeled()
    with pytest.raises(DataError, match=r"by the labels of 160 samples, classes 1 have none\. Provide data of"):
        refused(tmp_path, data=(inputs[labels != 1], labels[labels != 1]))()
    network = plain_network()
    with torch.no_grad():
        network[6].bias[0] = 100
    with pytest.raises(DataError, match=r"by the predictions of .* samples, classes 1, 2 have none"):
        refused(tmp_path, data=[inputs], network=network)()


def test_no_samples_at_all_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs at least one sample per class, but there are no samples"):
        refused(tmp_path, data=[torch.zeros(0, 1, 6, 6)])()


def test_a_singular_covariance_is_factored_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    network = plain_network()
    with torch.no_grad():
        network[4].bias[3] = -1000  # a unit that never fires
    with caplog.at_level(logging.WARNING):
        recorded = made(tmp_path / "r", network=network, statistics="all")
    assert set(recorded.info.jitter) == {"all.1"}
    assert 0 < recorded.info.jitter["all.1"] < 1e-4
    assert "covariances are singular" in caplog.text
    assert "all.1" in caplog.text
    assert bool(recorded.tensors["all.1.factor"].isfinite().all())


def test_one_sample_of_a_class_is_enough_to_be_recorded(tmp_path: Path) -> None:
    recorded = made(tmp_path / "r", labeled(3))
    assert recorded.info.class_counts == (1, 1, 1)
    assert "all.0" in recorded.info.jitter
    assert "spectral" in recorded.info.jitter


def test_what_would_not_fit_into_memory_is_refused_with_its_size(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError,
        match=r"51 units \(largest layers: 4 36, 6 12, output 3\) for 3 classes would take 0\.0 GiB of memory, but "
        r"max_memory is 0\.0001\. With units=channel they take .* GiB\. Or record fewer layers",
    ):
        refused(tmp_path, max_memory=0.0001)()


def test_memory_that_is_counted_is_memory_that_is_used() -> None:
    sizes = (300, 200, 10)
    moments = LayerMoments(sizes, 4, joint=True)
    kept = sum(part.nbytes for group in moments.groups for part in (group.mean, group.scatter))
    assert kept < LayerMoments.bytes_needed(sizes, 4, joint=True) < 3 * kept


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": ("9",)}, r"does not call '9'.*It calls 0, 1, 2"),
        ({"statistics": ()}, r"at least one statistic\. Choose from top, all, spectral, spectral-pairs"),
        ({"statistics": "top", "dropout_filters": 2}, r"the statistics are top\. Add 'all' to the statistics"),
        ({"statistics": "most"}, "Option 'statistics' of the recording cannot be 'most'"),
        ({"coefficients": 0}, "Option 'coefficients' of the recording cannot be 0"),
        ({"epsilon": -1}, "Option 'epsilon' of the recording cannot be -1"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        refused(tmp_path, **settings)()


def test_a_network_of_one_layer_has_no_graph(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    with pytest.raises(UsageError, match="Sequential has no recorded layer except its output"):
        refused(tmp_path, network=network)()
    assert made(tmp_path / "top", network=network, statistics=("top", "all")).info.layers[0].name == "output"


def test_a_network_without_classes_is_refused(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1))
    spec = InputSpec((1, 6, 6))
    for classes, told in ((None, "is not known: set num_classes"), (2, r"has no logits \(samples, classes\)")):
        with pytest.raises(UsageError, match=f"needs a classifier. .*{told}"):
            record(network, [torch.zeros(2, 1, 6, 6)], replace(spec, num_classes=classes), output=tmp_path / "r")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda inputs, labels: (inputs, labels + 1), r"classes 0 to 2, but the labels range from 1 to 3"),
        (lambda inputs, labels: [(inputs, labels[:5])], "one integer for each of the 240 samples"),
        (lambda inputs, labels: [(inputs, labels), inputs], "Some batches have labels and some do not"),
        (lambda inputs, _: [inputs.long()], r"floating-point network inputs, got torch.int64\. Normalize the data"),
        (lambda inputs, labels: (inputs.index_fill(0, torch.tensor([3]), math.nan), labels), "holds NaN or infinity"),
    ],
)
def test_data_that_do_not_fit_are_refused(tmp_path: Path, spoil: Callable[..., Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        refused(tmp_path, data=spoil(*labeled()))()


@pytest.mark.parametrize(
    ("data", "message"),
    [(7, "iterable of batches, got int"), (["image"], "or a tuple that starts with one, got str")],
)
def test_what_is_no_data_is_refused(tmp_path: Path, data: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        refused(tmp_path, data=data)()


def test_samples_of_another_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must have the shape \(samples, 1, 6, 6\), got \(4, 1, 5, 5\)"):
        refused(tmp_path, data=[torch.zeros(4, 1, 5, 5)])()


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path: Path) -> None:
    made(tmp_path / "r", statistics="top")
    before = (tmp_path / "r" / INFO_FILE).read_bytes()
    with pytest.raises(DataError, match=r"already holds a record\. Delete it, or choose another folder"):
        made(tmp_path / "r")
    assert (tmp_path / "r" / INFO_FILE).read_bytes() == before
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="already holds other files"):
        made(tmp_path / "notes")


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise DataError("the disk is full")

    monkeypatch.setattr("dfq_plugins.recording.record.write_info", fail)
    with pytest.raises(DataError, match="the disk is full"):
        refused(tmp_path)()


# ------------------------------------------------------------------------------------- opening


def test_a_missing_or_damaged_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing is not an activation record: it has no record\.json\. Give a"):
        ActivationRecord.open(tmp_path / "nothing")
    folder = made(tmp_path / "r", statistics="top").folder
    tensors, info = folder / TENSOR_FILE, folder / INFO_FILE
    whole, described = tensors.read_bytes(), info.read_text()
    tensors.write_bytes(whole[:-20])
    with pytest.raises(DataError, match=r"is damaged: its SHA-256 should be \w{64}, but is \w{64}\. Restore it from a"):
        ActivationRecord.open(folder)
    tensors.unlink()
    with pytest.raises(DataError, match=r"record\.safetensors cannot be read \(No such file or directory\)"):
        ActivationRecord.open(folder)
    tensors.write_bytes(whole)
    for text in (described[:-30], "[]", described.replace('"class_counts"', '"counts"')):
        info.write_text(text)
        with pytest.raises(DataError, match=r"record\.json is damaged: it is not a valid record\. Restore it from"):
            ActivationRecord.open(folder)
    info.write_text(described.replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(DataError, match=r"format version 2, but this dfq-plugins reads versions up to 1\. Install"):
        ActivationRecord.open(folder)


def test_a_file_that_is_no_safetensors_file_is_refused(tmp_path: Path) -> None:
    folder = made(tmp_path / "r", statistics="top").folder
    (folder / TENSOR_FILE).write_bytes(b"nonsense")
    import hashlib

    info = json.loads((folder / INFO_FILE).read_text())
    info["sha256"] = hashlib.sha256(b"nonsense").hexdigest()
    (folder / INFO_FILE).write_text(json.dumps(info))
    with pytest.raises(DataError, match="it is not a safetensors file"):
        ActivationRecord.open(folder)


def test_another_model_is_refused_with_both_digests(tmp_path: Path) -> None:
    recorded = made(tmp_path / "r", statistics="top")
    other = plain_network()
    with torch.no_grad():
        other[6].bias += 1
    with pytest.raises(ModelError) as caught:
        recorded.check_model(other, SPEC)
    for digest in (model_digest(plain_network()), model_digest(other)):
        assert digest in str(caught.value)
    assert "Use the model that was recorded, or record this one" in str(caught.value)


def test_a_layer_that_changed_shape_is_refused(tmp_path: Path) -> None:
    network = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)),
    )
    recorded = made(tmp_path / "r", network=network)
    with pytest.raises(
        ModelError,
        match=r"The layer '2' has another shape: \(4, 6, 6\) in the record .*, but \(4, 8, 8\) for inputs of shape "
        r"\(1, 8, 8\)\. The record was made with inputs of shape \(1, 6, 6\)",
    ):
        recorded.check_model(network, InputSpec((1, 8, 8)))
    recorded.check_model(network, SPEC)


def test_no_sample_counts_for_more_than_the_norm_that_the_noise_is_made_for() -> None:
    network, (inputs, labels) = plain_network(), labeled(60)
    norm = 0.25
    recording = Recording(network, SPEC, RecordingOptions(epsilon=1.0, delta=1e-5, clip_norm=norm))
    recording.read((inputs * 100, labels), lambda _event: None)
    means = torch.cat([group.mean for group in recording.moments.groups], 1)
    squares = torch.cat([group.scatter.diagonal(dim1=1, dim2=2) for group in recording.moments.groups], 1)
    counts = recording.moments.counts[:, None]
    assert float(means.norm(dim=1).max()) <= norm * 1.001
    assert float((squares / counts + means.square()).sum(1).max()) <= norm**2 * 1.001


def test_dropout_filters_follow_the_seed() -> None:
    def masks(seed: int) -> torch.Tensor:
        recording = Recording(plain_network(), SPEC, RecordingOptions(dropout_filters=2, seed=seed))
        return torch.cat([mask.flatten() for masks in recording.filters for mask in masks.values()])

    assert torch.equal(masks(3), masks(3))
    assert not torch.equal(masks(3), masks(4))
