"""Canonical JSON, with one form per value, and digests of it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from dfq_plugins.errors import UsageError


def jsonable(value: object) -> Any:
    """Convert `value` (records, containers, paths, enums, numbers, text) to JSON types; infinities become text.

    Raises:
        UsageError: the value holds something that has no JSON form.
    """
    # Imported late, like pydantic: this is its compiled core.
    from pydantic_core import PydanticSerializationError, to_json  # noqa: PLC0415

    try:
        return json.loads(to_json(value, inf_nan_mode="strings"))
    except PydanticSerializationError as error:
        raise UsageError(
            f"Settings are stored as JSON, so every value must have a JSON form: {error}. "
            "Use numbers, text, true or false, lists and mappings."
        ) from error


def short_digest(digest: str) -> str:
    """Shorten a digest to the digits that messages show.

    >>> short_digest("0123456789abcdef")
    '0123456789ab'
    """
    return digest[:12]


def sha256_of(value: object) -> str:
    """Return the SHA-256 of a value's canonical JSON, in hexadecimal."""
    text = json.dumps(jsonable(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
