"""The one place that imports pytorch-quantization, and the contexts that keep its side effects away from the process.

Version 2.1.3 has three of them, read in its source:

- `import pytorch_quantization` hangs absl's handler into the root logger and compiles with `torch.jit.script`, which
  warns that it is deprecated;
- every range that is loaded is logged as a warning;
- `_compute_amax_mse` moves its histogram to a GPU with `.cuda()`, also where there is none.

A fourth is never touched: `TensorQuantizer.use_fb_fake_quant`, its switch for ONNX export, belongs to the class.
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
    from pytorch_quantization.nn.modules.clip import Clip
    from pytorch_quantization.tensor_quant import QuantDescriptor
logging.root.handlers[:] = _root_handlers

__all__ = [
    "Clip",
    "QuantDescriptor",
    "calib",
    "quant_modules",
    "quant_nn",
    "without_cuda",
]


class _StayWhereYouAre(TorchFunctionMode):
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
    """Return a context in which `tensor.cuda()` gives the tensor itself, in this thread alone.

    The framework's `mse` calibration and its `load_state_dict` call `.cuda()` on whatever machine they run; inside this
    context they work on the CPU.

    >>> with without_cuda():
    ...     torch.ones(1).cuda().device.type
    'cpu'
    """
    return _StayWhereYouAre()
