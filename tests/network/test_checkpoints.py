"""Weights in checkpoints: found under any key and behind any prefix, and said."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from dfq_plugins.errors import ModelError
from dfq_plugins.network.load import load_weights

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

State = dict[str, "Tensor"]


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def filled(value: float) -> State:
    return {name: torch.full_like(tensor, value) for name, tensor in network().state_dict().items()}


def behind(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def within(state: State, name: str, wrapper: str) -> State:
    return {key.replace(f"{name}.", f"{name}.{wrapper}.", 1): value for key, value in state.items()}


MINE, OTHER, LOSS = filled(3), filled(5), {"criterion.weight": torch.ones(3)}
OPTIMIZER = {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}

FOUND: dict[str, tuple[Any, str]] = {
    "net": ({"net": MINE, "epoch": 3}, "took ['net']; left out epoch."),
    "DataParallel": ({"state_dict": behind("module.", MINE)}, "took ['state_dict'], names behind 'module.'."),
    "torch.compile": (behind("_orig_mod.", MINE), "took names behind '_orig_mod.'."),
    "both wrappers": (behind("module._orig_mod.", MINE), "took names behind 'module._orig_mod.'."),
    "Lightning": (
        {"state_dict": behind("model.", MINE) | LOSS, "optimizer_states": [OPTIMIZER], "callbacks": {}},
        "took ['state_dict'], names behind 'model.'; left out optimizer_states, callbacks, criterion.weight.",
    ),
    "Lightning, compiled": ({"state_dict": behind("model._orig_mod.", MINE)}, "names behind 'model._orig_mod.'."),
    "only an average": ({"ema_state_dict": MINE, "decay": 0.9}, "took ['ema_state_dict']; left out decay."),
    "AveragedModel": (
        behind("module.", MINE) | {"n_averaged": torch.tensor(3)},
        "took names behind 'module.'; left out n_averaged.",
    ),
    "FLOP counters": (
        MINE | {"total_ops": torch.zeros(1), "1.total_params": torch.zeros(1)},
        "left out 1.total_params, total_ops.",
    ),
    "deep": ({"checkpoint": {"trainer": {"model": MINE}}}, "took ['checkpoint']['trainer']['model']."),
    "a number": ({"model": MINE | {"version": 2}}, "took ['model']; left out version."),  # type: ignore[dict-item]
    "average first": (
        {"model_ema": behind("module.", OTHER), "model": MINE, "optimizer": OPTIMIZER},
        "left out model_ema, optimizer. Weights that fit are also in ['model_ema'], names behind 'module.'. To load",
    ),
    "average inside": (
        {"state_dict": behind("ema_model.", OTHER) | behind("model.", MINE)},
        "torch.save({k: v for k, v in weights.items() if k.startswith('ema_model.')}, 'other.pth').",
    ),
    "a backbone": (behind("backbone.", MINE) | {"head.weight": torch.ones(2)}, "'backbone.'; left out head.weight."),
}


@pytest.mark.parametrize("name", FOUND)
def test_weights_are_found_and_said(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint, message = FOUND[name]
    torch.save(checkpoint, tmp_path / "weights.pth")
    model = network()
    load_weights(model, tmp_path / "weights.pth")
    assert all(bool((value == 3).all()) for value in model.state_dict().values())
    (record,) = caplog.messages
    assert message in record


@pytest.mark.parametrize("state", [MINE, {k: v for k, v in MINE.items() if "tracked" not in k}])
def test_a_bare_state_dict_needs_no_word(state: State, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(state, tmp_path / "weights.pth")
    load_weights(network(), tmp_path / "weights.pth")
    assert not caplog.messages


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, torch.optim.swa_utils.AveragedModel])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_the_network_may_be_wrapped_as_well(
    wrap: Callable[[nn.Module], nn.Module], prefix: str, tmp_path: Path
) -> None:
    torch.save(behind(prefix, MINE), tmp_path / "weights.pth")
    model = wrap(network())
    load_weights(model, tmp_path / "weights.pth")
    assert all(bool((value == 3).all()) for value in model.parameters())


def test_a_part_of_the_network_was_wrapped(tmp_path: Path) -> None:
    model = nn.Sequential(network(), nn.Linear(2, 2))
    state = {name: torch.full_like(value, 3) for name, value in model.state_dict().items()}
    torch.save(within(state, "0", "_orig_mod"), tmp_path / "weights.pth")
    load_weights(model, tmp_path / "weights.pth")
    assert all(bool((value == 3).all()) for value in model.parameters())


def test_weights_of_the_older_weight_norm(tmp_path: Path) -> None:
    model = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    torch.save({"weight_g": torch.ones(2, 1), "weight_v": torch.ones(2, 3), "bias": torch.ones(2)}, tmp_path / "w.pth")
    load_weights(model, tmp_path / "w.pth")
    torch.testing.assert_close(model.weight, torch.full((2, 3), 3**-0.5))


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ({"model": MINE | {"head.weight": torch.ones(2)}}, "Missing: none. Unexpected: head.weight. Use the factory"),
        ({"model": {k: v for k, v in MINE.items() if k != "3.bias"}}, "Missing: 3.bias. Unexpected: none."),
        (MINE | {"3.bias": torch.zeros(5)}, "do not match the model: size mismatch for 3.bias"),
        ({"optimizer": OPTIMIZER}, "does not hold a state dict"),
        ({"epoch": 3}, "does not hold a state dict, a mapping of names to tensors."),
        ({}, "does not hold a state dict"),
    ],
)
def test_weights_of_another_network(checkpoint: Any, message: str, tmp_path: Path) -> None:
    torch.save(checkpoint, tmp_path / "weights.pth")
    with pytest.raises(ModelError, match=message):
        load_weights(network(), tmp_path / "weights.pth")
