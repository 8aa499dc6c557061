"""Loading models and weights: what users type, what files hold, and what is refused."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dfq_plugins.errors import ModelError, UsageError
from dfq_plugins.network.load import load_model

SOURCE = """
from dataclasses import dataclass
import torch
from torch import nn
import model_blocks

@dataclass
class Width:
    channels: int = 4

def network():
    import model_late_blocks
    return nn.Sequential(nn.Conv2d(3, Width().channels, 3), nn.BatchNorm2d(4), model_blocks.Block()).train()

def failing():
    raise ValueError("no weights here")

def weights():
    return network().state_dict()

number = 3
"""


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    (tmp_path / "model_blocks.py").write_text("from torch import nn\nclass Block(nn.ReLU): ...\n")
    (tmp_path / "model_late_blocks.py").write_text("")
    path = tmp_path / "my-model.py"
    path.write_text(SOURCE)
    return path


@pytest.fixture(autouse=True)
def _forget_modules() -> Any:
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if "model" in name and not name.startswith(("torch", "dfq_plugins")):
            del sys.modules[name]


def load_weights(model_file: Path, weights: Path) -> nn.Module:
    return load_model(f"{model_file}:network", weights)


def state(model_file: Path) -> dict[str, torch.Tensor]:
    return load_model(f"{model_file}:network").state_dict()


def test_a_factory_in_a_file(model_file: Path) -> None:
    path = list(sys.path)
    model = load_model(f"{model_file}:network")
    assert not model.training
    assert model(torch.zeros(1, 3, 5, 5)).shape == (1, 4, 3, 3)
    assert sys.path == path


def test_two_files_of_one_name_do_not_mix(tmp_path: Path) -> None:
    for width in (1, 2):
        folder = tmp_path / str(width)
        folder.mkdir()
        (folder / "model.py").write_text(f"from torch import nn\ndef make():\n    return nn.Linear({width}, 1)\n")
    first, second = (load_model(f"{tmp_path / str(width) / 'model.py'}:make") for width in (1, 2))
    assert (first.in_features, second.in_features) == (1, 2)


def test_torchvision_by_name() -> None:
    assert type(load_model("torchvision:squeezenet1_1")).__name__ == "SqueezeNet"


def test_an_importable_package() -> None:
    assert isinstance(load_model("torch.nn:Identity"), nn.Identity)


def test_a_package_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "my_model_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "nets.py").write_text("from torch import nn\ndef make():\n    return nn.Identity()\n")
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    assert isinstance(load_model("my_model_package.nets:make"), nn.Identity)
    assert sys.path == path


def test_loading_leaves_the_random_state(model_file: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    load_model(f"{model_file}:network")
    assert torch.equal(torch.rand(2), expected)


def test_the_real_network_of_the_data_pack(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shared_data.parent)
    model = load_model("data/networks.py:resnet20_cifar10")
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize("reference", ["resnet18", "torchvision:", ":factory", ""])
def test_a_malformed_reference(reference: str) -> None:
    with pytest.raises(UsageError, match=r"A model must be torchvision:NAME, package.module:factory, file.py:factory"):
        load_model(reference)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("torchvision:resnet81", r"torchvision has no model 'resnet81'. Did you mean 'resnet18'\?"),
        ("no_such_package.nets:make", "Cannot import 'no_such_package.nets' for the model: ModuleNotFoundError"),
        ("missing.py:make", "The model file missing.py does not exist."),
        ("{file}:netwrok", r"has no factory 'netwrok'. Did you mean 'network'\? It has .*failing"),
        ("{file}:failing", "The factory .*my-model.py:failing failed with ValueError: no weights here"),
        ("{file}:weights", "must return a torch.nn.Module, got OrderedDict. Pass a checkpoint with --weights."),
        ("{file}:number", "my-model.py:number must be a function or class that takes no arguments, got int"),
    ],
)
def test_a_factory_that_cannot_be_used(model_file: Path, reference: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(reference.replace("{file}", str(model_file)))


@pytest.mark.parametrize(("name", "source"), [("failing", None), ("network", "import model_blocks\n1 / 0\n")])
def test_a_failure_leaves_no_module_behind(model_file: Path, name: str, source: str | None) -> None:
    if source is not None:
        model_file.write_text(source)
    modules, path = set(sys.modules), list(sys.path)
    with pytest.raises(ModelError, match=r"failed with (ValueError|ZeroDivisionError)"):
        load_model(f"{model_file}:{name}")
    assert set(sys.modules) == modules
    assert sys.path == path


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "pt"])
def test_weights(model_file: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights.{suffix}"
    saved = {name: torch.full_like(value, 3) for name, value in state(model_file).items()}
    del saved["1.num_batches_tracked"]
    if suffix == "safetensors":
        save_file(saved, path)
    else:
        torch.save(saved, path)
    assert load_weights(model_file, path).state_dict()["0.weight"].unique().tolist() == [3.0]


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model"])
def test_weights_inside_a_checkpoint_of_a_parallel_model(model_file: Path, tmp_path: Path, wrapper: str) -> None:
    saved = {f"module.{name}": torch.full_like(value, 3) for name, value in state(model_file).items()}
    torch.save({"epoch": 3, wrapper: saved}, tmp_path / "weights.pth")
    loaded = load_weights(model_file, tmp_path / "weights.pth")
    assert loaded.state_dict()["0.weight"].unique().tolist() == [3.0]


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(Path(os.environ["DFQ_TEST_FOLDER"]) / "owned"),)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_pickle_with_code_in_it_is_refused(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    monkeypatch.setenv("DFQ_TEST_FOLDER", str(tmp_path))
    path = tmp_path / "weights.pth"
    if writer == "torch":
        torch.save({"0.weight": Malicious()}, path)
    else:
        path.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(ModelError, match="contains pickled code or is damaged, and is rejected: only") as caught:
        load_weights(model_file, path)
    assert not (tmp_path / "owned").exists()
    assert "weights_only=False" not in str(caught.value)


def test_weights_that_do_not_fit(model_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    saved = {name: value.clone() for name, value in state(model_file).items()}
    save_file({"0.weight": saved["0.weight"], **{f"head.{index}": torch.zeros(1) for index in range(7)}}, path)
    message = r"Missing: 0.bias, 1.weight, .*Unexpected: head.0, .*head.4 and 2 more. Use the factory"
    with pytest.raises(ModelError, match=message):
        load_weights(model_file, path)
    save_file(saved | {"0.weight": torch.zeros(4, 1, 3, 3)}, path)
    with pytest.raises(ModelError, match=r"do not match the model: size mismatch for 0.weight"):
        load_weights(model_file, path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.pth", None, "The weights file .*missing.pth does not exist."),
        ("bad.safetensors", b"nonsense", "The weights file .*bad.safetensors cannot be read: SafetensorError"),
        ("empty.pth", b"", "The weights file .*empty.pth cannot be read: EOFError"),
    ],
)
def test_weights_that_cannot_be_read(
    model_file: Path, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=message):
        load_weights(model_file, tmp_path / name)


def test_a_checkpoint_without_a_state_dict(model_file: Path, tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "weights.pt")
    with pytest.raises(ModelError, match=r"weights.pt does not hold a state dict, a mapping of names to tensors."):
        load_weights(model_file, tmp_path / "weights.pt")


def test_weights_of_another_suffix(model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(UsageError, match=r"A weights file must end in .safetensors, .pth or .pt, got 'weights.bin'."):
        load_weights(model_file, tmp_path / "weights.bin")
