"""Warnings from pytorch-quantization, and from torch's exporter about its markers, not about the user's model."""

from __future__ import annotations

from dfq_plugins.quantization.notices import Notice

LOGGER = "absl"
"""Name of the logger on which the framework reports each loaded range as a warning."""

NOTICES = (
    # The framework compiles its histograms with it at import.
    Notice("`torch.jit.script` is deprecated"),
    # TensorQuantizer reads its range as a number, so it becomes a constant, as an exported scale should be.
    Notice("Converting a tensor to a Python (boolean|number) might cause the trace", module=".*pytorch_quantization.*"),
    # The quantizer marker has no shape inference; it sets its output to its input's type.
    Notice("The shape inference of dfq::FakeQuantize type is missing", module=".*torch.onnx.*"),
)
"""Warnings that say nothing about the user's model."""
