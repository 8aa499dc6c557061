"""The deprecation notices that torch gives for torch.ao and TorchScript.

They are for whoever chooses the framework; docs/how-to/torch-ao.md passes them on, with what comes next.
"""

from __future__ import annotations

from dfq_plugins.quantization.notices import Notice

NOTICES = (
    Notice(r"torch\.ao\.quantization is deprecated and will be removed", DeprecationWarning),
    # From torch 2.15 on, once a process, by the first quantized tensor that is made.
    Notice(r"torch\.quantize_per_tensor, torch\.quantize_per_channel and other quantized tensor creation", UserWarning),
    # The adapter narrows the range itself where the processor needs it, see `engines.reduces_range`.
    Notice(r"Default qconfig of oneDNN backend with reduce_range of false may have accuracy issues", UserWarning),
    # A DeprecationWarning up to torch 2.14, a FutureWarning since.
    Notice(r"`torch\.jit\.(script|script_method|trace|trace_method|save|load)` is deprecated"),
    # About annotations inside torch.ao's own modules.
    Notice(r"The TorchScript type system doesn't support instance-level annotations on empty", UserWarning),
    # Scales and zero points are constants of a converted model, so that a trace may well freeze them.
    Notice(r"Converting a tensor to a Python (float|integer|number) might cause the trace to be incorrect"),
)
"""Warnings that say nothing about the user's model."""
