"""Data similarity: the ranking, and every kind of source that is read or refused."""

from __future__ import annotations

import io
import math
import re
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dfq_plugins.data.readers import load_source, normalize
from dfq_plugins.errors import DataError, ModelError, UsageError
from dfq_plugins.quality.similarity import rank
from dfq_plugins.statistics.augmentation import Augmentation, augment
from dfq_plugins.statistics.batch_norm import layer_divergences
from dfq_plugins.synthesis.run import synthesize
from dfq_plugins.types import InputSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from dfq_plugins.statistics.presentation import PresentationChoice

SPEC = InputSpec((3, 8, 8), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), (0.0, 1.0), 4)
GRAY = InputSpec((1, 8, 8), (0.5,), (0.25,), (0.0, 1.0))


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def expected_inputs(images: np.ndarray, spec: InputSpec = SPEC) -> np.ndarray:
    """Network inputs of bytes `(N, channels, H, W)`."""
    mean, std = (np.reshape(values, (1, -1, 1, 1)) for values in (spec.mean, spec.std))
    return (images / 255 - mean) / std


def read(path: Path, spec: InputSpec = SPEC) -> np.ndarray:
    return torch.cat(list(load_source(path, spec))).numpy()


# ------------------------------------------------------------------------------------- ranking


def noise(count: int, *, seed: int, std: float = 1.0, mean: float = 0.0) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)).clamp(-2, 2) * std + mean


def test_data_are_ranked_by_their_distance_from_the_training_data(tiny_network: nn.Module) -> None:
    sources = {
        "far": [noise(64, seed=3, std=0.3, mean=1.5)],
        "alike": list(noise(90, seed=1).split(32)),
        "wide": iter([noise(64, seed=2, std=2)]),
    }
    rows = rank(tiny_network, SPEC, sources, augmentation="none")
    assert [row.name for row in rows] == ["alike", "wide", "far"]
    assert [row.num_samples for row in rows] == [90, 64, 64]
    assert rows[0].divergence < 0.01
    assert rows[1].divergence > 0.1
    layers = layer_divergences(tiny_network, sources["far"], SPEC)
    assert rows[2].divergence == pytest.approx(np.mean(list(layers.values())))
    assert rows[2].worst_layer == max(layers, key=lambda name: layers[name])


@pytest.mark.parametrize("augmentation", ["none", "pad-and-crop"])
def test_the_measure_is_of_the_whole_set_and_not_of_its_batches(
    tiny_network: nn.Module, augmentation: PresentationChoice
) -> None:
    data = noise(96, seed=4) * torch.linspace(0.1, 2, 96).view(-1, 1, 1, 1)
    sources = {str(size): data.split(size) for size in (1, 7, 96)}
    divergences = [row.divergence for row in rank(tiny_network, SPEC, sources, augmentation=augmentation)]
    assert max(divergences) == pytest.approx(min(divergences), rel=1e-3)


def test_the_model_and_the_process_stay_as_they_are(tiny_network: nn.Module) -> None:
    tiny_network.train()
    before = {name: value.clone() for name, value in tiny_network.state_dict().items()}
    state = torch.get_rng_state()
    rank(tiny_network, SPEC, {"a": [noise(4, seed=0)]})
    assert all(torch.equal(value, before[name]) for name, value in tiny_network.state_dict().items())
    assert tiny_network.training
    assert not any(module._forward_pre_hooks for module in tiny_network.modules())
    assert torch.equal(state, torch.get_rng_state())


def no_batch_norm(_network: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False))


def untrained(network: nn.Module) -> nn.Module:
    network.norm1.reset_running_stats()
    network.norm2.reset_running_stats()
    return network


def not_finite(network: nn.Module) -> nn.Module:
    network.norm2.running_mean[0] = math.nan
    return network


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_batch_norm, "has no BatchNorm layer with running statistics"),
        (untrained, "was never trained"),
        (not_finite, r"NaN or infinity was found in \['norm2.running_mean'\]"),
    ],
)
def test_models_without_usable_statistics_are_refused(
    tiny_network: nn.Module, spoil: Callable[[nn.Module], nn.Module], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        rank(spoil(tiny_network), SPEC, {"a": [noise(4, seed=0)]})


@pytest.mark.parametrize("batches", [[], [torch.zeros(0, 3, 8, 8)]])
def test_a_source_without_samples_is_refused(tiny_network: nn.Module, batches: list[torch.Tensor]) -> None:
    with pytest.raises(DataError, match=r"^empty contains no samples\. Give at least one\.$"):
        rank(tiny_network, SPEC, {"empty": batches})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_source_that_is_not_finite_is_refused(tiny_network: nn.Module, value: float) -> None:
    data = noise(8, seed=0)
    data[5, 0, 0, 0] = value
    with pytest.raises(DataError, match=r"^broken contains NaN or infinity\. Remove those samples\.$"):
        rank(tiny_network, SPEC, {"broken": data.split(4)})


def test_other_errors_keep_their_own_text(tiny_network: nn.Module) -> None:
    def failing() -> Iterator[torch.Tensor]:
        yield noise(4, seed=0)
        raise ValueError("my own loader")

    with pytest.raises(ValueError, match=r"^my own loader$"):
        rank(tiny_network, SPEC, {"mine": failing()})


# ------------------------------------------------------------------------------------- presentation


def trained_on(images: torch.Tensor) -> nn.Module:
    """A network whose stored statistics are those of the given images."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8, momentum=None), nn.ReLU())
    network.train()(images)
    return network.eval()


def test_training_images_fit_best_as_training_showed_them() -> None:
    spec = InputSpec((3, 16, 16), SPEC.mean, SPEC.std, SPEC.value_range)
    assert spec.bounds is not None
    images = 0.3 * torch.randn(256, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    shown = augment(images, Augmentation(flip=True, padding=2), torch.Generator().manual_seed(5), spec.bounds[0])
    network = trained_on(shown)
    (plain,) = rank(network, spec, {"a": [images]}, augmentation="none")
    (best,) = rank(network, spec, {"a": [images]})
    (synthetic,) = rank(network, spec, {"a": [shown]})
    assert best.augmentation == "pad-and-crop"
    assert best.divergence < plain.divergence / 5
    assert synthetic.augmentation == "none"
    assert synthetic.divergence < plain.divergence / 5


def test_only_images_of_a_known_range_have_a_border() -> None:
    network, spec = trained_on(torch.rand(64, 3, 8, 8)), InputSpec((3, 8, 8))
    images = {"a": [torch.rand(8, *spec.shape)]}
    assert rank(network, spec, images)[0].augmentation == "none"
    with pytest.raises(
        UsageError, match=r"pad-and-crop needs images \(channels, height, width\) with a known value range"
    ):
        rank(network, spec, images, augmentation="pad-and-crop")


# ------------------------------------------------------------------------------------- image folders


def save_images(folder: Path, images: np.ndarray, suffix: str = ".png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:03}{suffix}")


def test_a_folder_of_images_is_read_whole_and_in_order(tmp_path: Path) -> None:
    images = pixels(70, 8, 8, 3)
    save_images(tmp_path / "a", images[:40])
    save_images(tmp_path / "b" / "deep", images[40:], ".PNG")
    (tmp_path / "readme.txt").write_text("not an image")
    batches = list(load_source(tmp_path, SPEC))
    assert [len(batch) for batch in batches] == [64, 6]
    np.testing.assert_allclose(torch.cat(batches), expected_inputs(images.transpose(0, 3, 1, 2)), atol=1e-5)


def test_images_are_resized_and_brought_to_the_network_s_channels(tmp_path: Path) -> None:
    save_images(tmp_path, np.full((2, 20, 30), 51, dtype=np.uint8))
    np.testing.assert_allclose(read(tmp_path), expected_inputs(np.full((2, 3, 8, 8), 51)), atol=1e-5)
    color = tmp_path / "color"
    save_images(color, np.full((2, 20, 30, 3), 102, dtype=np.uint8))
    np.testing.assert_allclose(read(color, GRAY), expected_inputs(np.full((2, 1, 8, 8), 102), GRAY), atol=1e-5)


@pytest.mark.parametrize("spoil", [lambda data: data[:60], lambda _: b"GIF89a nonsense", lambda _: b""])
def test_an_unreadable_image_is_named(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    save_images(tmp_path, pixels(2, 8, 8, 3))
    broken = tmp_path / "001.png"
    broken.write_bytes(spoil(broken.read_bytes()))
    with pytest.raises(
        DataError, match=rf"^{re.escape(str(broken))} cannot be read as an image: .*Fix or remove it\.$"
    ):
        read(tmp_path)


def test_an_image_of_absurd_size_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_images(tmp_path, pixels(1, 64, 64, 3))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"000\.png cannot be read as an image: .*decompression bomb"):
        read(tmp_path)


@pytest.mark.parametrize("spec", [SPEC, GRAY])
def test_sixteen_bits_are_read_like_eight(spec: InputSpec, tmp_path: Path) -> None:
    images = pixels(4, 8, 8)
    for bits, kind in (("8", np.uint8), ("16", np.uint16)):
        (tmp_path / bits).mkdir()
        for index, image in enumerate(images):
            stored = (image.astype(kind) * (257 if bits == "16" else 1)).astype(kind)
            Image.fromarray(stored).save(tmp_path / bits / f"{index}.{'tif' if index % 2 else 'png'}")
    np.testing.assert_allclose(read(tmp_path / "16", spec), read(tmp_path / "8", spec), atol=1e-5)


@pytest.mark.parametrize(("kind", "words"), [(np.float32, "floating-point numbers"), (np.int32, "32-bit integers")])
def test_images_without_a_known_range_of_values_are_refused(kind: Any, words: str, tmp_path: Path) -> None:
    Image.fromarray(pixels(8, 8).astype(kind)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=f"need a known range, but .*a.tif holds {words}"):
        read(tmp_path, GRAY)


def test_images_without_a_known_normalization_are_refused(tmp_path: Path) -> None:
    save_images(tmp_path, pixels(1, 8, 8, 3))
    np.savez(tmp_path / "a.npz", x=pixels(2, 8, 8, 3))
    for path in (tmp_path, tmp_path / "a.npz"):
        with pytest.raises(UsageError, match=r"its normalization is not known. Give mean and std \(--mean, --std\)"):
            read(path, InputSpec((3, 8, 8)))
    assert read(tmp_path, InputSpec((3, 8, 8), value_range=(0, 1))).max() <= 1


def test_images_are_standardized_one_by_one_where_the_network_takes_them_so(tmp_path: Path) -> None:
    save_images(tmp_path, pixels(3, 8, 8, 3))
    found = read(tmp_path, InputSpec((3, 8, 8), standardized_samples=True)).reshape(3, -1)
    np.testing.assert_allclose(found.mean(1), 0, atol=1e-5)
    np.testing.assert_allclose(found.std(1), 1, atol=1e-5)


def test_images_need_a_network_for_images(tmp_path: Path) -> None:
    save_images(tmp_path, pixels(1, 8, 8, 3))
    for shape in ((2, 8, 8), (3, 8), (3, 4, 4, 4)):
        with pytest.raises(DataError, match=re.escape(f"Images have 1 or 3 channels, but the network takes {shape}.")):
            read(tmp_path, InputSpec(shape))


# ------------------------------------------------------------------------------------- .npz files


@pytest.mark.parametrize(
    ("images", "spec"),
    [
        (pixels(5, 8, 8, 3), SPEC),
        (pixels(5, 3, 8, 8), SPEC),
        (pixels(5, 8, 8), SPEC),
        (pixels(5, 1, 8, 8), SPEC),
        (pixels(5, 8, 8, 1), SPEC),
        (pixels(5, 8, 8), GRAY),
        (pixels(5, 8, 8, 1), GRAY),
    ],
)
def test_bytes_in_any_usual_layout_are_pixels(tmp_path: Path, images: np.ndarray, spec: InputSpec) -> None:
    file = tmp_path / "images.npz"
    np.savez(file, images=images, labels=np.zeros(5))
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[-1] in {1, 3}:
        images = images.transpose(0, 3, 1, 2)
    images = np.broadcast_to(images, (5, spec.channels, 8, 8))
    np.testing.assert_allclose(read(file, spec), expected_inputs(images, spec), atol=1e-5)


def test_bytes_of_another_size_are_resized(tmp_path: Path) -> None:
    np.savez(tmp_path / "large.npz", np.full((3, 28, 28), 204, dtype=np.uint8))
    np.testing.assert_allclose(read(tmp_path / "large.npz"), expected_inputs(np.full((3, 3, 8, 8), 204)), atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_floats_are_the_network_s_own_inputs(tmp_path: Path, dtype: type) -> None:
    data = np.random.default_rng(0).normal(size=(70, 3, 8, 8)).astype(dtype)
    np.savez_compressed(tmp_path / "inputs.npz", other=np.zeros(3), inputs=data)
    batches = list(load_source(tmp_path / "inputs.npz", SPEC))
    assert [(len(batch), batch.dtype) for batch in batches] == [(64, torch.float32), (6, torch.float32)]
    np.testing.assert_array_equal(torch.cat(batches), data.astype(np.float32))


def test_features_without_space_are_read(tmp_path: Path) -> None:
    data = np.ones((4, 12), dtype=np.float32)
    np.savez(tmp_path / "features.npz", data)
    np.testing.assert_array_equal(read(tmp_path / "features.npz", InputSpec((12,))), data)


def test_the_usual_names_are_preferred(tmp_path: Path) -> None:
    first, second = (np.full((2, 3, 8, 8), value, dtype=np.float32) for value in (1, 2))
    np.savez(tmp_path / "both.npz", x_train=second, x_test=first)
    np.testing.assert_array_equal(read(tmp_path / "both.npz"), first)


def save(**arrays: Any) -> Callable[[Path], None]:
    return lambda path: np.savez(path, **arrays)


def save_pickle(path: Path) -> None:
    np.savez(path, x=np.array([{"a": 1}], dtype=object))


def save_plain_pickle(path: Path) -> None:
    path.write_bytes(b"\x80\x04K\x01.")


def save_truncated(path: Path) -> None:
    np.savez(path, x=pixels(4, 8, 8, 3))
    path.write_bytes(path.read_bytes()[:300])


def save_damaged(path: Path) -> None:
    stream = io.BytesIO()
    np.savez_compressed(stream, x=pixels(4, 8, 8, 3))
    data = bytearray(stream.getvalue())
    data[150:200] = bytes(50)
    path.write_bytes(bytes(data))


def save_no_array(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", b"not an array")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (save_pickle, "cannot be read as an .npz file without pickled objects: Object arrays cannot be loaded"),
        (save_plain_pickle, "cannot be read as an .npz file without pickled objects: "),
        (save_truncated, "cannot be read as an .npz file without pickled objects: "),
        (save_damaged, "cannot be read as an .npz file without pickled objects: "),
        (lambda path: path.write_bytes(b""), "cannot be read as an .npz file without pickled objects: "),
        (save_no_array, r"file.npz holds "),
        (save(), r"holds the arrays \[\]. Name the array of samples inputs or images"),
        (
            save(a=np.zeros(1), b=np.zeros(1)),
            r"holds the arrays \['a', 'b'\]. Name the array of samples inputs or images or x or x_test or data\.$",
        ),
        (save(x=np.zeros((2, 3, 8, 8), dtype=np.int64)), "holds int64 of shape .* Provide images as uint8, or network"),
        (save(x=np.array(["text"])), "Provide images as uint8, or network inputs as floating point"),
        (save(x=np.float32(1)), r"holds float32 of shape \(\)"),
        (
            save(x=np.zeros((2, 8, 8, 3))),
            r"holds samples of shape \(8, 8, 3\), but the network takes \(3, 8, 8\)\. Provide",
        ),
        (save(x=pixels(2, 5, 8, 8)), r"holds bytes of shape \(2, 5, 8, 8\), which are not images for a network that"),
        (save(x=pixels(2, 8)), r"holds bytes of shape \(2, 8\), which are not images"),
    ],
)
def test_unusable_archives_are_refused(tmp_path: Path, write: Callable[[Path], object], message: str) -> None:
    file = tmp_path / "file.npz"
    write(file)
    with pytest.raises(DataError, match=message) as caught:
        read(file)
    assert str(file) in str(caught.value)


def test_an_archive_without_samples_is_refused(tmp_path: Path, tiny_network: nn.Module) -> None:
    np.savez(tmp_path / "none.npz", np.zeros((0, 3, 8, 8)))
    with pytest.raises(DataError, match="none contains no samples"):
        rank(tiny_network, SPEC, {"none": load_source(tmp_path / "none.npz", SPEC)})


# ------------------------------------------------------------------------------------- other sources


def test_a_synthetic_set_is_read_as_it_was_written(tmp_path: Path, tiny_network: nn.Module) -> None:
    data = synthesize(tiny_network, SPEC, generator="gaussian", num_samples=70, output=tmp_path / "set")
    np.testing.assert_array_equal(read(tmp_path / "set"), data.inputs())
    with pytest.raises(DataError, match=r"set holds samples of shape \(3, 8, 8\), but the network takes \(3, 9, 9\)"):
        load_source(tmp_path / "set", InputSpec((3, 9, 9)))


@pytest.mark.parametrize("name", ["missing", "empty", "file.txt", "missing.npz"])
def test_anything_else_is_refused_with_what_can_be_given(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("text")
    message = f"{tmp_path / name} is not a synthetic data set, an .npz file or a folder of images (.bmp, .jpeg, .jpg,"
    with pytest.raises(DataError, match=re.escape(message)):
        load_source(tmp_path / name, SPEC)


def test_normalization_maps_bytes_onto_the_value_range() -> None:
    batch = torch.tensor([0.0, 255.0]).view(2, 1, 1, 1)
    raw = InputSpec((1, 1, 1), (127.5,), (127.5,), (0.0, 255.0))
    assert normalize(batch, raw).flatten().tolist() == [-1.0, 1.0]
    assert normalize(batch, InputSpec((1, 1, 1))).flatten().tolist() == [0.0, 1.0]
    assert normalize(batch, InputSpec((1, 1, 1), value_range=(-1.0, 3.0))).flatten().tolist() == [-1.0, 3.0]
