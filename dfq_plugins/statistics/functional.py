"""Finds the tensors that a network normalizes with `torch.nn.functional.batch_norm`, wherever it is called."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch.utils.hooks import RemovableHandle

_STATISTICS = {functional.batch_norm: 1, torch.batch_norm: 3}
"""Position of the running mean among the arguments."""


class FunctionalNorms:
    """Reports the inputs of functional batch normalization while a network runs; the compiler cannot follow it.

    Args:
        owners: names of the layers, by the identity of their running means.
        observe: called with a layer's name and the tensor that is normalized; also for calls from the layer's module.

    >>> layer, seen = nn.BatchNorm1d(2).eval(), []
    >>> norms = FunctionalNorms({id(layer.running_mean): "norm"}, lambda name, values: seen.append(name))
    >>> handles = list(norms.attach(layer))
    >>> _ = layer(torch.zeros(3, 2))
    >>> seen
    ['norm']
    """

    def __init__(self, owners: Mapping[int, str], observe: Callable[[str, Tensor], None]) -> None:
        self.active = False
        self._mode = _Observed(owners, observe)
        self._running = ExitStack()

    def attach(self, network: nn.Module) -> Iterator[RemovableHandle]:
        """Register hooks that watch each forward pass of the network."""

        def enter(*_: Any) -> None:
            self._running.enter_context(self._mode)
            self.active = True

        def leave(*_: Any) -> None:
            self._running.close()
            self.active = False

        yield network.register_forward_pre_hook(enter, prepend=True)
        yield network.register_forward_hook(leave, always_call=True)


class _Observed(TorchFunctionMode):
    def __init__(self, owners: Mapping[int, str], observe: Callable[[str, Tensor], None]) -> None:
        super().__init__()
        self._owners, self._observe = owners, observe

    def __torch_function__(
        self, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        keywords = kwargs or {}
        place = _STATISTICS.get(func)
        if place is not None:
            mean = args[place] if len(args) > place else keywords.get("running_mean")
            name = self._owners.get(id(mean))
            if name is not None:
                self._observe(name, args[0] if args else keywords["input"])
        return func(*args, **keywords)
