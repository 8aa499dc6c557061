"""The shipped digits network: what it scores, how large it is, and that the committed script still trains one."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from dfq_plugins.demo import train as training
from dfq_plugins.demo.data import load_digits
from dfq_plugins.demo.network import DIGITS_SPEC, WEIGHTS, DigitsNetwork, digits_network
from dfq_plugins.errors import PluginError

if TYPE_CHECKING:
    from pathlib import Path


def test_shipped_weights_reach_97_percent_on_the_held_out_digits() -> None:
    _, held_out = load_digits()
    assert training.accuracy(digits_network(), held_out) >= 0.97


def test_weights_are_small_and_keep_their_batch_norm() -> None:
    assert WEIGHTS.stat().st_size < 200_000
    assert sum(name.endswith("running_var") for name in load_file(WEIGHTS)) == 5


def test_network_comes_in_eval_mode_and_leaves_the_global_random_state() -> None:
    before = torch.get_rng_state()
    network = digits_network()
    assert not network.training
    assert torch.equal(torch.get_rng_state(), before)


def test_each_call_gives_a_network_of_its_own() -> None:
    first, second = digits_network(), digits_network()
    with torch.no_grad():
        first.classifier.bias.add_(1)
    assert not torch.equal(first.classifier.bias, second.classifier.bias)


def test_split_is_fixed_balanced_and_without_overlap() -> None:
    train, held_out = load_digits()
    assert (len(train.labels), len(held_out.labels)) == (1201, 596)
    assert held_out.labels.bincount().min() >= 57
    both = torch.cat([train.inputs, held_out.inputs]).flatten(1)
    assert len(both.unique(dim=0)) == 1797  # scikit-learn's digits are all different, so no image is in both parts


def test_digits_are_normalized_as_the_spec_says() -> None:
    train, _ = load_digits()
    low, high = DIGITS_SPEC.input_range
    assert train.inputs.min().item() == pytest.approx(low)
    assert train.inputs.max().item() == pytest.approx(high)
    assert train.inputs.shape[1:] == DIGITS_SPEC.shape
    assert abs(train.inputs.mean()) < 0.05
    assert abs(train.inputs.std() - 1) < 0.05


def test_missing_scikit_learn_names_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(PluginError, match=r'pip install "dfq-plugins\[demo\]"'):
        load_digits()


@pytest.mark.slow
def test_training_learns_is_repeatable_and_leaves_the_global_random_state() -> None:
    digits, held_out = load_digits()
    before = torch.get_rng_state()
    first = training.train(digits, epochs=2)
    second = training.train(digits, epochs=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.classifier.weight, second.classifier.weight)
    assert training.accuracy(first, held_out) > 0.6


def test_shifts_move_each_image_by_at_most_one_pixel() -> None:
    images = torch.zeros(50, 1, 8, 8)
    images[:, 0, 4, 4] = 1
    moved = training.shifted(images, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    assert moved[:, 0, 3:6, 3:6].sum((1, 2)).eq(1).all()
    assert moved.flatten(1).argmax(1).unique().numel() == 9


def test_script_writes_loadable_weights(tmp_path: Path) -> None:
    output = tmp_path / "digits.safetensors"
    result = CliRunner().invoke(training.main, ["--epochs", "1", "--output", str(output)])
    assert result.exit_code == 0, result.output
    assert "of 596 held-out digits" in result.output
    assert DigitsNetwork().load_state_dict(load_file(output)).missing_keys == []
