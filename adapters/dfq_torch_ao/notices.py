"""The deprecation warnings that torch emits for torch.ao and TorchScript.

They matter when choosing the framework; docs/how-to/torch-ao.md repeats them and says what comes next.
"""

from __future__ import annotations

from dfq_plugins.quantization.notices import Notice

NOTICES = (
    Notice(r"torch\.ao\.quantization is deprecated and will be removed", DeprecationWarning),
    # From torch 2.15 on, once per process, when the first quantized tensor is created.
    Notice(r"torch\.quantize_per_tensor, torch\.quantize_per_channel and other quantized tensor creation", UserWarning),
    # The adapter reduces the range itself if the processor needs it, see `engines.reduces_range`.
    Notice(r"Default qconfig of oneDNN backend with reduce_range of false may have accuracy issues", UserWarning),
    # A DeprecationWarning up to torch 2.14, a FutureWarning since.
    Notice(r"`torch\.jit\.(script|script_method|trace|trace_method|save|load)` is deprecated"),
    # Concerns annotations inside torch.ao's modules.
    Notice(r"The TorchScript type system doesn't support instance-level annotations on empty", UserWarning),
    # Scales and zero points are constants of a converted model, so a trace may freeze them.
    Notice(r"Converting a tensor to a Python (float|integer|number) might cause the trace to be incorrect"),
)
"""Warnings that say nothing about the user's model."""
