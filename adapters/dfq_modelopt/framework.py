"""The only module that imports ModelOpt, with the contexts that contain its side effects.

Version 0.47 has three, according to its source:

- its import compiles functions with `torch.jit.script`, which warns that it is deprecated, changes the warning
  filters of the process, and lets torch log that there is no CUDA compiler;
- converting a model prints how many quantizers were inserted;
- its dynamic modules convert a module in place.
"""

from __future__ import annotations

import contextlib
import io
import logging
from typing import TYPE_CHECKING

from dfq_modelopt.notices import LOGGER, NOTICES
from dfq_plugins.quantization.notices import silenced

if TYPE_CHECKING:
    from collections.abc import Iterator

_root_handlers = list(logging.root.handlers)
with silenced(NOTICES, logger=LOGGER):
    import modelopt.torch.opt as mto
    import modelopt.torch.quantization as mtq
    from modelopt.torch.quantization import calib
    from modelopt.torch.quantization import nn as quant_nn
    from modelopt.torch.quantization.config import QuantizerAttributeConfig
logging.root.handlers[:] = _root_handlers

__all__ = ["QuantizerAttributeConfig", "calib", "mto", "mtq", "quant_nn", "quiet"]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what the framework prints off the standard output within the block."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
