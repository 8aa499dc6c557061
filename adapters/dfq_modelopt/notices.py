"""Warnings from ModelOpt that do not concern the user's model."""

from __future__ import annotations

from dfq_plugins.quantization.notices import Notice

LOGGER = "torch.utils.cpp_extension"
"""Name of the logger on which torch warns, at ModelOpt's import, of a machine without CUDA."""

NOTICES = (
    # The framework compiles its backward passes with it at import.
    Notice("`torch.jit.script` is deprecated"),
    Notice("`torch.jit.script_method` is deprecated"),
    # Its dynamic modules look at their own attributes while torch.jit traces them.
    Notice("Converting a tensor to a Python (boolean|number) might cause the trace", module=".*modelopt.*"),
    # It compares the version of transformers, if that is installed, with those it was tested with.
    Notice("transformers version .* is (not tested|incompatible)"),
)
"""Warnings that say nothing about the user's model."""
