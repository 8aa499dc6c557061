"""The warnings that torch and torchao emit for their own developers, in every run."""

from __future__ import annotations

from dfq_plugins.quantization.notices import Notice

NOTICES = (
    # torch.export and Inductor walk over modules that are deprecated, and say so of each.
    Notice(r".*is deprecated", DeprecationWarning),
    Notice(r".*is deprecated", FutureWarning),
    Notice(r"torch\.quantize_per_tensor, torch\.quantize_per_channel and other quantized tensor creation", UserWarning),
    Notice(r"erase_node\(.*\) on an already erased node", UserWarning),
    Notice(r"Node .* target .* does not reference an nn\.Module", UserWarning),
    Notice(r"Attempted to insert a get_attr Node with no underlying reference", UserWarning),
    # The weights of recurrent layers, which torch lists twice.
    Notice(r"The tensor attributes? .* assigned during export", UserWarning),
    Notice(r"must run observer before calling calculate_qparams", UserWarning),
)
"""Warnings that say nothing about the user's model."""
