"""The notices of pytorch-quantization and of torch's ONNX exporter that say nothing about the user's model."""

from __future__ import annotations

from dfq_plugins.quantization.notices import Notice

LOGGER = "absl"
"""Name of the logger to which the framework reports each range that it loads, as a warning."""

NOTICES = (
    # The framework compiles its histograms with it when it is imported.
    Notice("`torch.jit.script` is deprecated"),
    # dynamo=False is chosen on purpose, and calls a function of torch itself that is to go with it.
    Notice("You are using the legacy TorchScript-based ONNX export"),
    Notice("The feature will be removed. Please remove usage of this function", module=".*torch.onnx.*"),
    # TensorQuantizer reads its own range as a number: a constant, which is what an exported scale is to be.
    Notice("Converting a tensor to a Python (boolean|number) might cause the trace", module=".*pytorch_quantization.*"),
    # The marker of a quantizer has no shape inference, and takes its input's type by itself.
    Notice("The shape inference of dfq::FakeQuantize type is missing", module=".*torch.onnx.*"),
    # Strided slices of constants are left to ONNX Runtime.
    Notice("Constant folding - Only steps=1 can be constant folded", module=".*torch.onnx.*"),
)
"""Warnings that say nothing about the user's model."""
