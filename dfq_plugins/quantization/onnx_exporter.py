"""Keeps torch's ONNX exporter from printing the whole program to standard output when an export fails."""

from __future__ import annotations

import importlib
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_EXPORTER = "torch.onnx._internal.torchscript_exporter.utils"
_SWITCH = "setup_onnx_logging"


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Leave the exporter's log off within the block: torch turns it on in every export, and never off again."""
    try:
        exporter: Any = importlib.import_module(_EXPORTER)
        switch = getattr(exporter, _SWITCH)
    except (ImportError, AttributeError):  # another release of torch
        yield
        return
    setattr(exporter, _SWITCH, nullcontext)
    try:
        yield
    finally:
        setattr(exporter, _SWITCH, switch)
