"""What every adapter is built with: state that travels in the module, checked batches, silenced notices."""

from __future__ import annotations

import copy
import logging
import warnings
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.fx import symbolic_trace

from dfq_plugins.errors import DataError, UsageError
from dfq_plugins.quantization.batches import checked_batches
from dfq_plugins.quantization.notices import Notice, silenced
from dfq_plugins.quantization.prepared import attach_state, require_prepared_shape, state_of
from dfq_plugins.types import InputSpec

SPEC = InputSpec((2, 3))


@dataclass(frozen=True)
class Settings:
    bits: int


@dataclass(frozen=True)
class OtherSettings:
    bits: int


@pytest.mark.parametrize("module", [nn.Linear(2, 2), symbolic_trace(nn.Sequential(nn.Linear(2, 2)))])
def test_state_survives_a_deep_copy(module: nn.Module) -> None:
    attach_state(module, Settings(4))
    attach_state(module, OtherSettings(2))
    copied = copy.deepcopy(module)
    assert state_of(copied, Settings, calibrator="mine") == Settings(4)
    attach_state(copied, Settings(8))
    assert state_of(copied, Settings, calibrator="mine").bits == 8
    assert state_of(module, Settings, calibrator="mine").bits == 4
    assert state_of(module, OtherSettings, calibrator="mine").bits == 2
    assert "dfq" not in " ".join(module.state_dict())


def test_a_model_from_elsewhere_has_no_state() -> None:
    with pytest.raises(
        UsageError, match=r"^mine works on models .* got Linear\. Call prepare\(\) first; or use mine\(\)\.$"
    ):
        state_of(nn.Linear(2, 2), Settings, calibrator="mine", otherwise="or use mine()")
    with pytest.raises(UsageError, match=r"got str\. Call prepare\(\) first\.$"):
        state_of("module", Settings, calibrator="mine")  # type: ignore[arg-type]


def test_the_shape_of_an_export_is_the_prepared_one() -> None:
    require_prepared_shape(InputSpec((2, 3), num_classes=4), SPEC)
    with pytest.raises(UsageError, match=r"prepared with, \(2, 3\), got \(3, 2\)\. Give the same specification"):
        require_prepared_shape(InputSpec((3, 2)), SPEC)


def test_batches_are_checked_one_by_one() -> None:
    batches = [torch.zeros(4, 2, 3, dtype=torch.double), torch.zeros(0, 2, 3), torch.ones(1, 2, 3)]
    assert [(len(batch), batch.dtype) for batch in checked_batches(iter(batches), SPEC)] == [
        (4, torch.float32),
        (1, torch.float32),
    ]


@pytest.mark.parametrize(
    ("batches", "told"),
    [
        ([], r"at least one batch, got none\. Give batches of shape \(samples, 2, 3\)"),
        ([torch.zeros(0, 2, 3)], "at least one batch, got none"),
        ([torch.zeros(4, 3, 2)], r"must have the shape \(samples, 2, 3\), got \(4, 3, 2\)"),
        ([torch.zeros(())], r"must have the shape \(samples, 2, 3\), got \(\)"),
        ([torch.full((1, 2, 3), float("inf"))], "a batch holds NaN or infinity"),
    ],
)
def test_unusable_batches_are_refused(batches: list[torch.Tensor], told: str) -> None:
    with pytest.raises(DataError, match=told):
        list(checked_batches(batches, SPEC))


def test_only_the_given_notices_are_silenced(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("chatty")
    log.setLevel(logging.INFO)
    with silenced([Notice("old", DeprecationWarning)], logger="chatty"):
        warnings.warn("old thing", DeprecationWarning, stacklevel=1)
        log.warning("progress")
        log.error("broken")
        with pytest.raises(UserWarning, match="old thing"):
            warnings.warn("old thing", UserWarning, stacklevel=1)
    assert log.level == logging.INFO
    assert [record.message for record in caplog.records] == ["broken"]
    with pytest.raises(DeprecationWarning):
        warnings.warn("old thing", DeprecationWarning, stacklevel=1)
