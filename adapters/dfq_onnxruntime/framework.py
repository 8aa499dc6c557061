"""Contains the side effects of ONNX Runtime's quantization tools: what they print and log on the root logger."""

from __future__ import annotations

import io
import logging
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_FOLDER = "onnxruntime"
_LOGGER = "onnxruntime.quantization"


@contextmanager
def quiet_tools() -> Iterator[None]:
    """Within the block, keep the tools from printing progress, and from configuring the root logger.

    They log with `logging.warning`, which gives a program without handlers one.
    """
    handlers, level = list(logging.root.handlers), logging.getLogger(_LOGGER).level
    placeholder = logging.NullHandler()
    logging.root.addHandler(placeholder)
    logging.root.addFilter(_foreign)
    logging.getLogger(_LOGGER).setLevel(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.getLogger(_LOGGER).setLevel(level)
        logging.root.removeFilter(_foreign)
        logging.root.handlers[:] = handlers


def _foreign(record: logging.LogRecord) -> bool:
    """Return whether a record comes from elsewhere."""
    return _FOLDER not in record.pathname
