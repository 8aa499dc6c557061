"""Finds the line of the user's model at which a framework's tracer failed, for the error messages of the adapters."""

from __future__ import annotations

import linecache
import traceback
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection
    from types import FrameType


class FailingLine(NamedTuple):
    """The stack frame of the model's code in which tracing failed, and the line as text: `path:number: `code``."""

    frame: FrameType
    text: str


def failing_line(error: Exception, not_the_model: Collection[Path]) -> FailingLine | None:
    """Return the last line of the error's traceback that is outside the given folders, or None.

    Args:
        error: the error from the tracer.
        not_the_model: folders of torch, the framework and the adapter.
    """
    found = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        path = Path(frame.f_code.co_filename)
        if path.is_file() and not any(path.is_relative_to(folder) for folder in not_the_model):
            found = frame, line
    if found is None:
        return None
    frame, line = found
    path_text = frame.f_code.co_filename
    return FailingLine(frame, f"{path_text}:{line}: `{linecache.getline(path_text, line).strip()}`")


def code_line(frame: FrameType | None, not_the_model: Collection[Path]) -> str:
    """Return `path:number: `code`` of the innermost frame of a model's code; empty if its file is not known.

    Args:
        frame: a frame of the code that observes the model; the search goes outward from it, up to that code again.
        not_the_model: folders of torch and of the observing code.
    """
    observer = None if frame is None else Path(frame.f_code.co_filename).parent
    inside = False
    while frame is not None and not (inside and Path(frame.f_code.co_filename).parent == observer):
        inside = inside or Path(frame.f_code.co_filename).parent != observer
        if _is_model_code(frame.f_code.co_filename, tuple(not_the_model)):
            text = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
            return f"{frame.f_code.co_filename}:{frame.f_lineno}: `{text}`"
        frame = frame.f_back
    return ""


@cache
def _is_model_code(file: str, not_the_model: tuple[Path, ...]) -> bool:
    path = Path(file)
    return path.is_file() and not any(path.is_relative_to(folder) for folder in not_the_model)
