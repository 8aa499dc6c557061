"""A network that ONNX Runtime computes, as a torch module."""

import io
import warnings
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn

from dfq_plugins.errors import ModelError
from dfq_plugins.model_state import frozen_copy
from dfq_plugins.types import InputSpec


class OnnxModel(nn.Module):
    """Runs an ONNX program; `session` is ONNX Runtime's own object, `program` what a file of it would hold."""

    def __init__(self, program: bytes, spec: InputSpec) -> None:
        super().__init__()
        self.program, self.spec = program, spec
        self.quantized: bytes | None = None
        self.samples: Tensor | None = None
        self.session = open_session(program)

    def forward(self, inputs: Tensor) -> Tensor:
        (outputs,) = self.session.run(None, {"input": inputs.detach().cpu().float().numpy()})
        return torch.from_numpy(outputs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "session": None}  # a session cannot be copied

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.session = open_session(self.program)


def open_session(program: bytes) -> onnxruntime.InferenceSession:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(program, settings, providers=["CPUExecutionProvider"])


def export_float(model: nn.Module, spec: InputSpec) -> bytes:
    """Return a copy of the model as an ONNX program with BatchNorm folded, for any batch size."""
    buffer = io.BytesIO()
    example = torch.zeros(2, *spec.shape)  # a batch of one could be traced as a constant
    with warnings.catch_warnings():
        # The exporter that keeps module names in its nodes is the older one, and says so.
        warnings.filterwarnings("ignore", "You are using the legacy TorchScript-based ONNX export")
        warnings.filterwarnings("ignore", "The feature will be removed. Please remove usage of this function")
        try:
            torch.onnx.export(
                frozen_copy(model).cpu(),
                (example,),
                buffer,
                dynamo=False,
                opset_version=17,
                input_names=["input"],
                output_names=["output"],
                dynamic_axes={"input": {0: "batch"}, "output": {0: "batch"}},
            )
        except Exception as error:  # torch.onnx raises whatever the model's own forward does
            raise ModelError(f"torch.onnx cannot export the model: {error}. Rewrite what it names.") from error
    return buffer.getvalue()
