"""Rejects a network whose gradient graph is cut before its input, and reports where."""

from __future__ import annotations

import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dfq_plugins.errors import DfqError, ModelError, first_line
from dfq_plugins.model_state import hooked
from dfq_plugins.network.outputs import named_outputs
from dfq_plugins.network.trace_errors import failing_line

if TYPE_CHECKING:
    from collections.abc import Iterator


def require_traceable(model: nn.Module, sample: Tensor) -> None:
    """Check that gradients reach every layer that the network calls.

    Args:
        model: a network whose parameters all require gradients.
        sample: inputs `(batch, *shape)`.

    Raises:
        ModelError: the gradient graph is cut; the message names the module after the cut.
    """
    cuts: list[str] = []

    def cut_detector(name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            tensors = [value for value in inputs if isinstance(value, Tensor) and value.is_floating_point()]
            if tensors and not any(value.requires_grad for value in tensors):
                cuts.append(name)

        return hook

    hooks = (module.register_forward_pre_hook(cut_detector(name)) for name, module in model.named_modules() if name)
    with hooked(hooks), traced(model):
        outputs = model(sample.detach().clone().requires_grad_().clone())  # a network may overwrite a copy, not a leaf
    if cuts:
        raise ModelError(
            f"The network cannot be traced for pruning: the input of {cuts[0]!r} has no gradient, because an operation "
            "before it cuts the graph: detach(), no_grad(), argmax(), rounding, or NumPy. Replace it with one that "
            "passes gradients, or set individual weights to zero instead (sparsity)."
        )
    if not any(output.requires_grad for output in named_outputs(outputs).values()):
        raise ModelError(
            "The network cannot be traced for pruning: its output has no gradient, because its last operation cuts "
            "the graph: detach(), no_grad(), argmax(), rounding, or NumPy. Return the logits themselves."
        )


@contextmanager
def traced(model: nn.Module) -> Iterator[None]:
    """Turn a tracing failure within the block into an error that names the failing line of the network.

    Raises:
        ModelError: tracing failed; includes the operation's own message.
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
            "Replace that operation, or set individual weights to zero instead (sparsity)."
        ) from error


def _last_function(error: Exception) -> str:
    """Return the function that raised; torch-pruning names its functions after the operations they handle."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return frames[-1][0].f_code.co_name
