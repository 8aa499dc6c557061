"""Quantize a trained PyTorch network without its data, inside the framework you already use.

Public names are imported on first use: `import dfq_plugins` takes milliseconds and does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfq_plugins.host.lazy_names import lazy_names

if TYPE_CHECKING:
    from dfq_plugins.data.dataset import SyntheticDataset
    from dfq_plugins.distillation.loss import DistillationLoss
    from dfq_plugins.distillation.options import TrainingOptions
    from dfq_plugins.distillation.run import distill
    from dfq_plugins.hookspecs import hookimpl
    from dfq_plugins.network.load import load_network
    from dfq_plugins.pruning.run import prune
    from dfq_plugins.quality.run import inspect
    from dfq_plugins.quantization.finetune import finetune
    from dfq_plugins.quantization.load import load_quantized
    from dfq_plugins.quantization.parts import quantize_parts
    from dfq_plugins.quantization.run import quantize, run_quantization
    from dfq_plugins.reconstruction.options import ReconstructionOptions
    from dfq_plugins.recording.options import RecordingOptions
    from dfq_plugins.recording.run import record
    from dfq_plugins.synthesis.run import synthesize
    from dfq_plugins.types import Batch, InputSpec, NetworkSpec, Recipe

    __version__: str

__all__ = [
    "Batch",
    "DistillationLoss",
    "InputSpec",
    "NetworkSpec",
    "Recipe",
    "ReconstructionOptions",
    "RecordingOptions",
    "SyntheticDataset",
    "TrainingOptions",
    "__version__",
    "distill",
    "finetune",
    "hookimpl",
    "inspect",
    "load_network",
    "load_quantized",
    "prune",
    "quantize",
    "quantize_parts",
    "record",
    "run_quantization",
    "synthesize",
]

_lazy, __dir__ = lazy_names(
    __name__,
    {
        "Batch": "types",
        "DistillationLoss": "distillation.loss",
        "TrainingOptions": "distillation.options",
        "InputSpec": "types",
        "NetworkSpec": "types",
        "Recipe": "types",
        "ReconstructionOptions": "reconstruction.options",
        "RecordingOptions": "recording.options",
        "SyntheticDataset": "data.dataset",
        "distill": "distillation.run",
        "finetune": "quantization.finetune",
        "hookimpl": "hookspecs",
        "inspect": "quality.run",
        "load_network": "network.load",
        "load_quantized": "quantization.load",
        "prune": "pruning.run",
        "quantize": "quantization.run",
        "quantize_parts": "quantization.parts",
        "record": "recording.run",
        "run_quantization": "quantization.run",
        "synthesize": "synthesis.run",
    },
)


def __getattr__(name: str) -> object:
    return _version() if name == "__version__" else _lazy(name)


def _version() -> str:
    import importlib.metadata  # noqa: PLC0415  a third of the time allowed for `import dfq_plugins`

    try:
        return importlib.metadata.version("dfq-plugins")
    except importlib.metadata.PackageNotFoundError:  # a checkout on the path, never installed
        return "0+uninstalled"
