"""Silences individual warnings, matched by text, that frameworks emit for their own developers."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class Notice(NamedTuple):
    """A warning that does not concern the user's model.

    Args:
        message: regular expression that matches the beginning of its text.
        category: its class, or a base class.
        module: regular expression for the module that emits it; empty for any.
    """

    message: str
    category: type[Warning] = Warning
    module: str = ""


@contextmanager
def silenced(notices: Iterable[Notice], *, logger: str | None = None) -> Iterator[None]:
    """Silence the given notices within the block, and nothing else.

    Args:
        notices: the warnings.
        logger: name of a logger that only passes errors within the block, for a framework that logs its progress as
            warnings.
    """
    log = None if logger is None else logging.getLogger(logger)
    level = None if log is None else log.level
    with warnings.catch_warnings():
        for notice in notices:
            warnings.filterwarnings("ignore", *notice)
        try:
            if log is not None:
                log.setLevel(logging.ERROR)
            yield
        finally:
            if log is not None and level is not None:
                log.setLevel(level)
