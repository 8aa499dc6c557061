"""What must stay as it was: a model and the process."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import nn


class Snapshot:
    """Everything about a model and the process that must stay as it was."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.values = {name: value.clone() for name, value in model.state_dict().items()}
        self.pointers = [value.data_ptr() for value in model.state_dict().values()]
        self.modes = self._modes()
        self.random = self._random()

    def _modes(self) -> list[object]:
        parameters = [(p.requires_grad, p.grad, p.device, p.dtype, p.stride()) for p in self.model.parameters()]
        modules = [
            (
                module.training,
                list(module._forward_hooks),
                list(module._forward_pre_hooks),
                list(module._backward_hooks),
            )
            for module in self.model.modules()
        ]
        process = (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(), nn.Conv2d, nn.Linear)
        return [*parameters, *modules, process]

    @staticmethod
    def _random() -> tuple[object, ...]:
        numpy_state: Any = np.random.get_state()  # noqa: NPY002  the global state is the subject
        return random.getstate(), numpy_state[1].tolist(), numpy_state[2], torch.get_rng_state().tolist()

    def assert_unchanged(self) -> None:
        state = self.model.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in self.values.items())
        assert [value.data_ptr() for value in state.values()] == self.pointers
        assert self._modes() == self.modes
        assert self._random() == self.random
