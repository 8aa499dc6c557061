"""Data sets of networks with several inputs: files, loaders, and every form that calibration tools take."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import dfq_plugins as dfq
from dfq_plugins.data.plan import ShardPlan
from dfq_plugins.data.readers import load_source
from dfq_plugins.data.sample_checks import checked_batch
from dfq_plugins.errors import DataError, UsageError
from dfq_plugins.inputs import count, joined
from dfq_plugins.types import InputSpec, NetworkSpec
from networks_by_input import example

if TYPE_CHECKING:
    from pathlib import Path

    from dfq_plugins.data.dataset import SyntheticDataset

SPEC = NetworkSpec({"right": InputSpec((3,)), "image": InputSpec((1, 2, 2), value_range=(0, 1))}, num_classes=5)


@pytest.fixture
def data(tmp_path: Path) -> SyntheticDataset:
    found = example("image and metadata")
    dfq.synthesize(found.network, found.spec, generator="gaussian", num_samples=10, batch_size=4, output=tmp_path / "s")
    return dfq.SyntheticDataset.open(tmp_path / "s")


def test_a_shard_holds_each_input_under_its_name(data: SyntheticDataset) -> None:
    tensors = load_file(data.folder / "shard-00000.safetensors")
    assert {name: tuple(tensor.shape[1:]) for name, tensor in tensors.items()} == {
        "inputs.image": (3, 12, 12),
        "inputs.meta": (4,),
        "labels": (),
        "outputs.output": (5,),
    }


def test_the_manifest_holds_each_input_s_specification_in_order(tmp_path: Path) -> None:
    found = example("two images")
    swapped = NetworkSpec(dict(reversed(found.spec.named.items())), num_classes=5)
    dfq.synthesize(found.network, swapped, generator="gaussian", num_samples=4, output=tmp_path)
    data = dfq.SyntheticDataset.open(tmp_path)
    assert list(data[0].inputs) == list(data.inputs()) == ["right", "left"]
    assert data.spec == swapped


def test_samples_and_batches_are_dictionaries(data: SyntheticDataset) -> None:
    assert {name: tuple(tensor.shape) for name, tensor in data[7].inputs.items()} == {
        "image": (3, 12, 12),
        "meta": (4,),
    }
    batch = next(iter(data.loader(6)))
    assert batch.inputs["image"].shape == (6, 3, 12, 12)
    assert torch.equal(joined(list(data.batches(3)))["meta"], data.inputs()["meta"])
    assert count(data.inputs(5)) == 5
    assert torch.equal(pickle.loads(pickle.dumps(data))[2].inputs["meta"], data[2].inputs["meta"])  # noqa: S301
    assert "image" in data._repr_html_()


def test_calibration_tools_get_every_input(data: SyntheticDataset) -> None:
    inputs = data.inputs()
    reader = data.calibration_data_reader(batch_size=4)
    feeds = list(reader)
    assert [len(feed["meta"]) for feed in feeds] == [4, 4, 2]
    assert np.array_equal(np.concatenate([feed["image"] for feed in feeds]), inputs["image"].numpy())
    renamed = data.calibration_data_reader({"image": "x", "meta": "y"})
    assert list(next(iter(renamed))) == ["x", "y"]
    arrays = next(data.representative_dataset(10)())
    assert np.array_equal(arrays[1], inputs["meta"].numpy())
    seen: list[int] = []
    found = example("image and metadata")
    found.network.register_forward_hook(lambda _module, _inputs, output: seen.append(len(output)))
    data.forward_loop(found.network, batch_size=6)
    assert seen == [6, 4]


def test_one_graph_name_does_not_do_for_two_inputs(data: SyntheticDataset) -> None:
    with pytest.raises(UsageError, match=r"Every input of the data set \(image, meta\) needs the name of one in the"):
        data.calibration_data_reader("input")


def test_an_interrupted_set_resumes_to_the_same_bytes(data: SyntheticDataset) -> None:
    found = example("image and metadata")
    shard = data.folder / "shard-00001.safetensors"
    before = shard.read_bytes()
    (data.folder / "manifest.json").write_text(
        (data.folder / "manifest.json").read_text().replace('"state": "complete"', '"state": "incomplete"')
    )
    shard.unlink()
    dfq.synthesize(found.network, found.spec, generator="gaussian", num_samples=10, batch_size=4, output=data.folder)
    assert shard.read_bytes() == before


def test_an_npz_file_holds_an_array_for_each_input(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "real.npz"
    right = rng.normal(size=(70, 3)).astype(np.float32)
    np.savez(path, image=rng.integers(0, 256, (70, 2, 2), dtype=np.uint8), right=right)
    batch = joined(list(load_source(path, SPEC)))
    assert torch.equal(batch["right"], torch.from_numpy(right))
    assert batch["image"].shape == (70, 1, 2, 2)
    assert list(batch) == ["right", "image"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image": np.zeros((4, 1, 2, 2), np.float32)}, r"but the network has an input 'right'\. Add it"),
        (
            {"image": np.zeros((4, 1, 2, 2), np.float32), "right": np.zeros((5, 3), np.float32)},
            "needs the same number of samples of each input, but right has 5, image has 4",
        ),
    ],
)
def test_incomplete_files_are_refused(arrays: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "real.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message):
        joined(list(load_source(tmp_path / "real.npz", SPEC)))


def test_images_alone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must hold several inputs: right, image\. Give .* under each of these names"):
        load_source(tmp_path, SPEC)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.zeros(2, 3), r"takes several inputs \(right, image\), got one of type Tensor"),
        ({"right": torch.zeros(2, 3)}, "must hold the inputs right, image, got right"),
        ({"right": torch.zeros(2, 3), "image": torch.zeros(2, 1, 2, 3)}, r"A batch of 'image' must have the shape"),
        ({"right": torch.zeros(2, 3) / 0, "image": torch.zeros(2, 1, 2, 2)}, r"Values of 'right' must be finite"),
        ({"right": torch.zeros(3, 3), "image": torch.zeros(2, 1, 2, 2)}, "right has 3, image has 2"),
    ],
)
def test_batches_are_checked_input_by_input(batch: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        SPEC.check_batch(batch)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": {}}, "needs an InputSpec for each, by name"),
        ({"inputs": {"image": (3, 8, 8)}}, "needs an InputSpec for each, by name"),
        ({"inputs": {"a b": InputSpec((3,))}}, "The name of an input consists of letters.*got 'a b'"),
        ({"inputs": {"a": InputSpec((3,), num_classes=2)}}, "belongs to the network, but the input 'a' has one"),
        ({"inputs": {"a": InputSpec((3,))}, "call": "stars"}, "call must be keywords, positional or dictionary"),
        ({"inputs": {"a": InputSpec((3,))}, "order": ("b",)}, r"order must name each input once \(a\), got b"),
    ],
)
def test_wrong_specifications_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        NetworkSpec(**arguments)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.zeros(2, 3), r"needs the inputs of the specification \(image, right\), got one tensor"),
        ({"right": torch.zeros(2, 3)}, r"\(image, right\), got right\. A generator must yield"),
        ({"right": torch.zeros(2, 3), "image": torch.zeros(2, 3)}, r"needs the input 'image' of shape \(2, 1, 2, 2\)"),
    ],
)
def test_a_generator_s_inputs_are_checked_before_they_are_written(inputs: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        checked_batch(ShardPlan(0, 2), SPEC, inputs, None, None)


def test_one_tensor_is_not_a_dictionary() -> None:
    with pytest.raises(DataError, match=r"specification \(one tensor\), got right"):
        checked_batch(ShardPlan(0, 2), InputSpec((3,)), {"right": torch.zeros(2, 3)}, None, None)
