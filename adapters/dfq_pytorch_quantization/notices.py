"""Warnings from pytorch-quantization that do not concern the user's model."""

from __future__ import annotations

from dfq_plugins.quantization.notices import Notice

LOGGER = "absl"
"""Name of the logger on which the framework reports each loaded range as a warning."""

NOTICES = (
    # The framework compiles its histograms with it at import.
    Notice("`torch.jit.script` is deprecated"),
    # TensorQuantizer reads its range as a number, so it becomes a constant, as an exported scale should be.
    Notice("Converting a tensor to a Python (boolean|number) might cause the trace", module=".*pytorch_quantization.*"),
)
"""Warnings that say nothing about the user's model."""
