"""Silences, one by one and by their text, the deprecation notices that torch gives for torch.ao and TorchScript.

The notices are for whoever chooses the framework; docs/how-to/torch-ao.md passes them on, with what comes next.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_FRAMEWORK_NOTICES: tuple[tuple[str, type[Warning]], ...] = (
    (r"torch\.ao\.quantization is deprecated and will be removed", DeprecationWarning),
    # From torch 2.15 on, once a process, by the first quantized tensor that is made.
    (r"torch\.quantize_per_tensor, torch\.quantize_per_channel and other quantized tensor creation", UserWarning),
    # The adapter narrows the range itself where the processor needs it, see `engines.reduces_range`.
    (r"Default qconfig of oneDNN backend with reduce_range of false may have accuracy issues", UserWarning),
)

_TORCHSCRIPT_NOTICES: tuple[tuple[str, type[Warning]], ...] = (
    # A DeprecationWarning up to torch 2.14, a FutureWarning since.
    (r"`torch\.jit\.(script|script_method|trace|trace_method|save|load)` is deprecated", Warning),
    # About annotations inside torch.ao's own modules.
    (r"The TorchScript type system doesn't support instance-level annotations on empty", UserWarning),
    # Scales and zero points are constants of a converted model, so that a trace may well freeze them.
    (r"Converting a tensor to a Python (float|integer|number) might cause the trace to be incorrect", Warning),
)


@contextmanager
def framework_notices_silenced() -> Iterator[None]:
    """Silence the known notices of torch.ao and TorchScript, and nothing else, within the block."""
    with warnings.catch_warnings():
        for message, category in (*_FRAMEWORK_NOTICES, *_TORCHSCRIPT_NOTICES):
            warnings.filterwarnings("ignore", message=message, category=category)
        yield
