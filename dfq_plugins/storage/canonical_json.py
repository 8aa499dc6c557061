"""TODO."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from dfq_plugins.errors import DataError, UsageError
from dfq_plugins.storage.files import write_atomically
# pydantic resolves the annotations below at run time, so that this cannot move into the TYPE_CHECKING block.
from dfq_plugins.types import InputSpec  # noqa: TC001
from dfq_plugins.data.manifest import MANIFEST_FILE

if TYPE_CHECKING:
    from pathlib import Path
    from pydantic import TypeAdapter

def jsonable(value: object) -> Any:
    """Return `value` (records, containers, paths, enums, numbers, text) in JSON's types; infinities become text.

    Raises:
        UsageError: something in it has no JSON form.
    """
    # As late as pydantic itself, of which it is the compiled part.
    from pydantic_core import PydanticSerializationError, to_json  # noqa: PLC0415

    try:
        return json.loads(to_json(value, inf_nan_mode="strings"))
    except PydanticSerializationError as error:
        raise UsageError(
            f"Options are kept in {MANIFEST_FILE} and need values that JSON can hold: {error}. "
            "Use numbers, text, true or false, lists and mappings."
        ) from error


def _sha256(value: object) -> str:
    text = json.dumps(jsonable(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
