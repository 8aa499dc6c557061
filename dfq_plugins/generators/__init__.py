"""Built-in data generators, one file each."""

from __future__ import annotations
