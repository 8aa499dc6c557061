"""Brevitas's global configuration, restored after each use."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from dfq_brevitas.framework import brevitas_config

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def kept_configuration() -> Iterator[None]:
    """Restore the setting that Brevitas does not restore when it fails."""
    ignored = brevitas_config.IGNORE_MISSING_KEYS
    try:
        yield
    finally:
        brevitas_config.IGNORE_MISSING_KEYS = ignored
