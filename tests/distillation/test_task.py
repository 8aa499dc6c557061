"""What a student is taught by: inputs that cannot be are refused before anything is written."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch

from dfq_plugins.distillation.inputs import InputSource
from dfq_plugins.distillation.run import distill
from dfq_plugins.errors import DfqError
from dfq_plugins.host.registry import get_registry
from dfq_plugins.pruning.run import prune
from dfq_plugins.quantization.finetune import finetune

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

    from dfq_plugins.types import InputSpec

WRONG = [
    ({"generator": "adversarail"}, "Did you mean 'adversarial'"),
    ({"generator": "adversarial", "generator_options": {"iterations": 3}}, "iterations"),
    ({"data": None}, "Training a student needs inputs"),
]


@pytest.mark.parametrize(("given", "told"), WRONG)
@pytest.mark.parametrize("command", ["finetune", "distill", "prune"])
def test_wrong_inputs_leave_no_work_folder(
    command: str, given: dict[str, Any], told: str, tiny_network: nn.Module, tiny_spec: InputSpec, tmp_path: Path
) -> None:
    commands: dict[str, Callable[..., object]] = {
        "finetune": partial(finetune, tiny_network, calibrator="torch-ao"),
        "distill": partial(distill, tiny_network, tiny_network),
        "prune": partial(prune, tiny_network, sparsity=0.5),
    }
    with pytest.raises(DfqError, match=told):
        commands[command](spec=tiny_spec, work=tmp_path / "work", **{"data": torch.zeros(8, 3, 8, 8), **given})
    assert not (tmp_path / "work").exists()


def test_inputs_that_can_be() -> None:
    InputSource(generator="gaussian").check(get_registry())
    InputSource(generator="adversarial", options={"warm_up": 0}).check(get_registry())
