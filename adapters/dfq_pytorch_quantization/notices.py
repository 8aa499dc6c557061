"""Warnings from pytorch-quantization and torch's ONNX exporter that do not concern the user's model."""

from __future__ import annotations

from dfq_plugins.quantization.notices import Notice

LOGGER = "absl"
"""Name of the logger on which the framework reports each loaded range as a warning."""

NOTICES = (
    # The framework compiles its histograms with it at import.
    Notice("`torch.jit.script` is deprecated"),
    # dynamo=False is deliberate; it calls a torch function that will be removed together with it.
    Notice("You are using the legacy TorchScript-based ONNX export"),
    Notice("The feature will be removed. Please remove usage of this function", module=".*torch.onnx.*"),
    # TensorQuantizer reads its range as a number, so it becomes a constant, as an exported scale should be.
    Notice("Converting a tensor to a Python (boolean|number) might cause the trace", module=".*pytorch_quantization.*"),
    # The quantizer marker has no shape inference; it sets its output to its input's type.
    Notice("The shape inference of dfq::FakeQuantize type is missing", module=".*torch.onnx.*"),
    # Strided slices of constants are left to ONNX Runtime.
    Notice("Constant folding - Only steps=1 can be constant folded", module=".*torch.onnx.*"),
)
"""Warnings that say nothing about the user's model."""
