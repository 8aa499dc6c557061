"""Guards that leave the caller's model and process unchanged."""

from __future__ import annotations

import itertools
import random
import sys
from abc import ABC, abstractmethod
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Self

import numpy as np
import torch

from dfq_plugins.private_copy import private_copy

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from contextlib import AbstractContextManager

    from torch import nn
    from torch.utils.hooks import RemovableHandle


def frozen_copy(model: nn.Module) -> nn.Module:
    """Return a deep copy in eval mode and float32 whose parameters do not require gradients.

    What the network is wrapped in, such as DataParallel or `torch.compile`, is not copied.

    Raises:
        ModelError: the model is TorchScript, has layers without a size, or cannot be copied.
    """
    return private_copy(model).eval().float().requires_grad_(requires_grad=False)


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter or buffer; the CPU if it has neither.

    >>> device_of(torch.nn.ReLU())
    device(type='cpu')
    """
    first = next(itertools.chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Keep forward hooks within the block: registered as the handles are drawn, and removed whatever happens.

    >>> relu, seen = torch.nn.ReLU(), []
    >>> with hooked([relu.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))]):
    ...     _ = relu(torch.zeros(3))
    >>> _ = relu(torch.zeros(4))
    >>> seen
    [3]
    """
    with ExitStack() as attached:
        for handle in handles:
            attached.callback(handle.remove)
        yield


class ForwardHooks(ABC):
    """Forward hooks on a network, removed when the context closes or `close` is called."""

    _attached = ExitStack()

    @abstractmethod
    def attach(self) -> Iterator[RemovableHandle]:
        """Register the hooks and yield the handle of each."""

    def open(self) -> Self:
        """Attach all hooks until `close`, or none if one of them fails."""
        with ExitStack() as attached:
            attached.enter_context(hooked(self.attach()))
            self._attached = attached.pop_all()
        return self

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove every hook."""
        self._attached.close()


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Let gradients flow through a network but not into its parameters, and restore all its values.

    In training mode, every forward pass updates BatchNorm statistics and a framework's observed ranges. Some
    frameworks also resize or replace buffers.
    """
    parameters = [(value, value.detach().clone(), value.requires_grad) for value in model.parameters()]
    buffers = [(module, dict(module._buffers)) for module in model.modules()]  # noqa: SLF001  includes non-persistent ones
    kept = {id(value): value.detach().clone() for value in model.buffers()}
    try:
        for value, _, _ in parameters:
            value.requires_grad = False
        yield
    finally:
        with torch.no_grad():
            for value, former, required_grad in parameters:
                value.copy_(former)
                value.requires_grad = required_grad
            for module, named in buffers:
                _restore_buffers(module, named, kept)


def _restore_buffers(module: nn.Module, named: dict[str, torch.Tensor | None], kept: dict[int, torch.Tensor]) -> None:
    for name, value in named.items():
        former = None if value is None else kept[id(value)]
        if value is not None and former is not None and value.shape == former.shape:
            former = value.copy_(former)  # in place: other code may hold this tensor
        module._buffers[name] = former  # noqa: SLF001  as above


def seed_global_state(seed: int) -> None:
    """Seed the global random states of Python, NumPy and torch, within `preserve_global_state`.

    Networks that draw random numbers in eval mode, and plugins that ignore their own generator, then give the same
    results whatever the caller's seed.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  the global state itself
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # otherwise it would be seeded when it starts
        torch.cuda.manual_seed_all(seed)


@contextmanager
def kept_settings() -> Iterator[None]:
    """Restore what other people's code may set for the whole process: random states, torch's modes and defaults."""
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    dtype, gradients, threads = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()
    deterministic, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    device = torch.get_default_device()
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_rng_state(torch_state)
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(gradients)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        if torch.get_default_device() != device:
            torch.set_default_device(None if device == _CPU else device)


_CPU = torch.device("cpu")


def _plain_modes() -> ExitStack:
    """Return a context without automatic casting, and with the CPU as the default device."""
    modes = ExitStack()
    for kind in ("cpu", "cuda", "xpu", "mps"):
        if torch.is_autocast_enabled(kind):
            modes.enter_context(torch.autocast(kind, enabled=False))
    if torch.get_default_device() != _CPU:
        modes.enter_context(_CPU)
    return modes


@contextmanager
def preserve_global_state(seed: int | None = None) -> Iterator[None]:
    """Restore random states (Python, NumPy, torch), default dtype and grad mode, even after an error.

    Inside the context, the default dtype is float32, the default device is the CPU, gradients are recorded, nothing is
    cast automatically, and functions that the caller compiled run uncompiled, whatever the caller set: hooks and copies
    would have torch compile them again and again.

    Args:
        seed: seed of the random states inside the context; None leaves them as they are.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002  the global state itself
    dtype, gradients = torch.get_default_dtype(), torch.is_grad_enabled()
    started = bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
    devices = range(torch.cuda.device_count()) if started else []
    try:
        with (
            torch.inference_mode(mode=False),
            torch.random.fork_rng(devices=devices),
            _uncompiled(),
            _plain_modes(),
        ):
            torch.set_default_dtype(torch.float32)
            torch.set_grad_enabled(True)
            if seed is not None:
                seed_global_state(seed)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(gradients)


def _uncompiled() -> AbstractContextManager[None]:
    if "torch._dynamo" not in sys.modules:  # nothing was compiled, and importing the compiler takes seconds
        return nullcontext()
    stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance


@contextmanager
def limited_threads(count: int | None) -> Iterator[None]:
    """Limit torch to `count` CPU threads, then restore the previous number; None changes nothing.

    >>> with limited_threads(1):
    ...     torch.get_num_threads()
    1
    """
    former = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        if count is not None:
            torch.set_num_threads(former)
