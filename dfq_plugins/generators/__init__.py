"""The built-in data generators."""

from __future__ import annotations
