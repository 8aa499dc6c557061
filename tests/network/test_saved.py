"""Networks in a folder: what is written, what comes back, and what is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from dfq_plugins.errors import DataError, ModelError, UsageError
from dfq_plugins.network.digest import model_digest
from dfq_plugins.network.load import load_model, load_network
from dfq_plugins.network.saved import NETWORK_FILE, WEIGHTS_FILE, save_network

if TYPE_CHECKING:
    from pathlib import Path

FACTORY = """
from torch import nn

def network(width=6):
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(width), nn.Linear(width, 4)]
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), *head)

def wider():
    return network(8)

def other():
    return nn.Sequential(nn.Linear(3, 4))

def changed():
    model = network()
    model[1].eps = 0.5
    return model
"""


def narrow() -> nn.Module:
    """Return what the factory builds, with four filters instead of six."""
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(4)]
    return nn.Sequential(*layers, nn.Linear(4, 4)).eval()


@pytest.fixture
def factory(tmp_path: Path) -> str:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "net.py").write_text(FACTORY)
    return f"{tmp_path}/code/net.py:network"


def test_a_narrower_network_comes_back_on_the_command_line(factory: str, tmp_path: Path) -> None:
    model, inputs = narrow(), torch.randn(2, 3, 8, 8)
    path = save_network(model, tmp_path / "out", factory=factory, about={"kind": "pruned"})
    assert path == tmp_path / "out" / NETWORK_FILE
    found = load_model(f"saved:{tmp_path / 'out'}")
    assert torch.equal(found(inputs), model(inputs))
    assert model_digest(found) == model_digest(model)
    assert all(parameter.requires_grad for parameter in found.parameters())
    record = json.loads(path.read_text())
    assert (record["kind"], record["factory"]) == ("pruned", "../code/net.py:network")
    assert record["sizes"]["0"] == {"in_channels": 3, "out_channels": 4, "groups": 1}


def test_both_folders_can_move_together(factory: str, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "code").rename(tmp_path / "here" / "code")
    here = factory.replace("/code/", "/here/code/")
    save_network(narrow(), tmp_path / "here" / "out", factory=here, about={})
    (tmp_path / "here").rename(tmp_path / "there")
    assert load_model(f"saved:{tmp_path / 'there' / 'out'}")[0].out_channels == 4  # type: ignore[index]


def test_without_a_factory_the_network_is_given(tmp_path: Path) -> None:
    save_network(narrow(), tmp_path, factory=None, about={})
    with pytest.raises(ModelError, match=r"network.json names no factory.*load_network\(folder, model\)"):
        load_network(tmp_path)
    names: dict = {}
    exec(FACTORY, names)  # noqa: S102  our own text
    given = names["network"]()
    assert load_network(tmp_path, given)[0].out_channels == 4  # type: ignore[index]
    assert given[0].out_channels == 6


def test_a_network_that_was_saved_before_is_built_by_the_same_factory(factory: str, tmp_path: Path) -> None:
    save_network(narrow(), tmp_path / "first", factory=factory, about={})
    (tmp_path / "deep").mkdir()
    save_network(narrow(), tmp_path / "deep" / "second", factory=f"saved:{tmp_path / 'first'}", about={})
    assert load_network(tmp_path / "deep" / "second")[0].out_channels == 4  # type: ignore[index]
    assert "../../code/net.py:network" in (tmp_path / "deep" / "second" / NETWORK_FILE).read_text()


def test_a_package_factory_stays_as_it_is(tmp_path: Path) -> None:
    from dfq_plugins.demo.network import digits_network

    save_network(digits_network(), tmp_path, factory="dfq_plugins.demo.network:digits_network", about={})
    assert load_model(f"saved:{tmp_path}")(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("other", r"does not match the one that .*net.py:other builds: .* Provide the network that it was"),
        ("changed", r"has the digest \w{12}, but with the network that .*changed builds now the digest is \w{12}"),
    ],
)
def test_another_factory(factory: str, tmp_path: Path, name: str, message: str) -> None:
    path = save_network(narrow(), tmp_path / "out", factory=factory, about={})
    path.write_text(path.read_text().replace("net.py:network", f"net.py:{name}"))
    with pytest.raises(ModelError, match=message):
        load_network(tmp_path / "out")


def test_any_width_of_the_factory_will_do(factory: str, tmp_path: Path) -> None:
    path = save_network(narrow(), tmp_path / "out", factory=factory, about={})
    path.write_text(path.read_text().replace("net.py:network", "net.py:wider"))
    assert load_network(tmp_path / "out")[0].out_channels == 4  # type: ignore[index]


def test_what_is_damaged_is_refused(factory: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not hold a saved network: FileNotFoundError in network.json"):
        load_network(tmp_path)
    path = save_network(narrow(), tmp_path, factory=factory, about={})
    sound = path.read_text()
    path.write_text(sound.replace('"format_version": 1', '"format_version": 9'))
    with pytest.raises(DataError, match="format version 9, but this dfq-plugins reads versions up to 1"):
        load_network(tmp_path)
    path.write_text(sound.replace('"sizes": {', '"sizes": [], "other": {'))
    with pytest.raises(DataError, match=r"TypeError in network.json, sizes is \[\]"):
        load_network(tmp_path)
    path.write_text(sound.replace('"out_channels"', '"__class__"'))
    with pytest.raises(ModelError, match="has no size __class__"):
        load_network(tmp_path)
    path.write_text(sound)
    (tmp_path / WEIGHTS_FILE).write_bytes((tmp_path / WEIGHTS_FILE).read_bytes()[:-1])
    with pytest.raises(DataError, match=r"The weights in .* are damaged: the checksum does not match"):
        load_network(tmp_path)


def test_it_brings_its_own_weights(factory: str, tmp_path: Path) -> None:
    save_network(narrow(), tmp_path, factory=factory, about={})
    with pytest.raises(UsageError, match=r"includes its weights, so .*net.pth cannot be loaded. Omit it"):
        load_model(f"saved:{tmp_path}", tmp_path / "net.pth")
