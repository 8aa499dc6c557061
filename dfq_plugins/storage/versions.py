"""The versions of the libraries that results depend on."""

from __future__ import annotations

import platform
from importlib import metadata

_LIBRARIES = ("dfq-plugins", "torch", "torchvision", "numpy", "safetensors")


def library_versions() -> dict[str, str]:
    """Return the versions of Python and the libraries that the samples depend on, without importing them."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions
