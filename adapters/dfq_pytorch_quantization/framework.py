"""The only module that imports pytorch-quantization, with the contexts that contain its side effects.

Version 2.1.3 has three, according to its source:

- `import pytorch_quantization` adds absl's handler to the root logger and compiles with `torch.jit.script`, which warns
  that it is deprecated;
- it logs every loaded range as a warning;
- `_compute_amax_mse` moves its histogram to a GPU with `.cuda()`, even if there is none.

A fourth is avoided: `TensorQuantizer.use_fb_fake_quant`, its switch for ONNX export, is a class attribute and is never
set here.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from dfq_plugins.quantization.notices import silenced
from dfq_pytorch_quantization.notices import NOTICES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_root_handlers = list(logging.root.handlers)
with silenced(NOTICES):
    from pytorch_quantization import calib, quant_modules
    from pytorch_quantization import nn as quant_nn
    from pytorch_quantization.tensor_quant import QuantDescriptor
logging.root.handlers[:] = _root_handlers

__all__ = [
    "QuantDescriptor",
    "calib",
    "quant_modules",
    "quant_nn",
    "without_cuda",
]


class _IgnoreCuda(TorchFunctionMode):
    """Turns `tensor.cuda()` into `tensor`."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.Tensor.cuda:
            return args[0]
        return func(*args, **(kwargs or {}))


def without_cuda() -> TorchFunctionMode:
    """Return a context in which `tensor.cuda()` returns the tensor itself, in this thread only.

    The framework's `mse` calibration and its `load_state_dict` call `.cuda()` on any machine; inside this context they
    work on the CPU.

    >>> with without_cuda():
    ...     torch.ones(1).cuda().device.type
    'cpu'
    """
    return _IgnoreCuda()
