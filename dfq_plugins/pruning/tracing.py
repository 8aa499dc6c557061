"""Refuses a network whose gradient graph ends before its input, and says where."""

from __future__ import annotations

import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dfq_plugins.errors import DfqError, ModelError, first_line
from dfq_plugins.network.trace_errors import failing_line

if TYPE_CHECKING:
    from collections.abc import Iterator


def require_traceable(model: nn.Module, sample: Tensor) -> None:
    """Make sure that gradients reach every layer that the network calls.

    Args:
        model: all its parameters take gradients.
        sample: inputs `(batch, *shape)`.

    Raises:
        ModelError: names the module before which the graph is cut, and what cut it as far as that is known.
    """
    cuts: list[str] = []

    def look(name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            tensors = [value for value in inputs if isinstance(value, Tensor) and value.is_floating_point()]
            if tensors and not any(value.requires_grad for value in tensors):
                cuts.append(name)

        return hook

    handles = [module.register_forward_pre_hook(look(name)) for name, module in model.named_modules() if name]
    try:
        with traced(model):
            outputs = model(sample.detach().clone().requires_grad_())
    finally:
        for handle in handles:
            handle.remove()
    if cuts:
        raise ModelError(
            f"The network cannot be traced for pruning: what enters {cuts[0]!r} carries no gradient, because an "
            "operation before it cuts the graph: detach(), no_grad(), argmax(), rounding, or NumPy. Replace it by one "
            "that passes gradients, or set single weights to zero instead (sparsity)."
        )
    if not isinstance(outputs, Tensor) or outputs.grad_fn is None:
        raise ModelError(
            "The network cannot be traced for pruning: its answer carries no gradient, because its last operation cuts "
            "the graph: detach(), no_grad(), argmax(), rounding, or NumPy. Return the logits themselves."
        )


@contextmanager
def traced(model: nn.Module) -> Iterator[None]:
    """Say at which line of the network tracing failed.

    Raises:
        ModelError: with the operation's own message.
    """
    try:
        with torch.enable_grad():
            yield
    except DfqError:
        raise
    except Exception as error:
        folder = Path(torch.__file__).parent
        line = failing_line(error, [folder, folder.with_name("torch_pruning"), Path(__file__).parent])
        where = f" by torch-pruning, in {_last_function(error)}()" if line is None else f" at {line.text}"
        raise ModelError(
            f"{type(model).__name__} cannot be traced for pruning{where}: {type(error).__name__}, {first_line(error)}. "
            "Replace that operation, or set single weights to zero instead (sparsity)."
        ) from error


def _last_function(error: Exception) -> str:
    """Return the function that raised, which torch-pruning names after the operation that it treats."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return frames[-1][0].f_code.co_name
