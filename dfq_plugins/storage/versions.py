"""TODO."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any
from dfq_plugins.errors import DataError, UsageError
from dfq_plugins.data.manifest import GeneratorRecord, Manifest, Settings, ShardRecord, shard_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from dfq_plugins.types import InputSpec

_LIBRARIES = ("dfq-plugins", "torch", "torchvision", "numpy", "safetensors")


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that the samples depend on, without importing them."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions
