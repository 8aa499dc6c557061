"""What torch's ONNX exporter needs around it.

It prints the whole program to standard output when an export fails, and it refuses an operator that a later operator
set has.
"""

from __future__ import annotations

import importlib
import re
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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


def export_at(opset: int, write: Callable[[int], object], latest: int = 18) -> int:
    """Call `write(opset)`, and again with a later operator set if the exporter names one that the network needs.

    Attention, for example, needs 14 and `grid_sample` 16. Most tools read early operator sets best, so none is later
    than it has to be.

    Args:
        opset: the operator set to begin with.
        write: exports with an operator set.
        latest: the last operator set to try; TorchScript's exporter ends with 20.

    Returns:
        The operator set that the network was exported with.

    >>> def write(opset):
    ...     if opset < 14:
    ...         raise RuntimeError("Support for this operator was added in version 14, try exporting with it")
    >>> export_at(13, write)
    14
    """
    while True:
        try:
            write(opset)
        except Exception as error:
            needed = re.search(r"operator was added in version (\d+)", str(error))
            if needed is None or not opset < int(needed[1]) <= latest:
                raise
            opset = int(needed[1])
        else:
            return opset
