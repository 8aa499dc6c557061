"""Every error that the host raises, with the exit code that the command line gives it.

A message states the rule, the value that broke it, and the next step.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable


class DfqError(Exception):
    """Base of all errors raised on purpose by dfq-plugins."""

    exit_code: ClassVar[int] = 1


class DfqWarning(UserWarning):
    """Base of all warnings given on purpose by dfq-plugins."""


class UsageError(DfqError, ValueError):
    """An argument, option, recipe or count that cannot be used as given."""

    exit_code = 2


class PluginError(DfqError):
    """A plugin that is unknown, broken, ambiguous, or whose framework is not installed."""

    exit_code = 3


class ModelError(DfqError):
    """A model that cannot be loaded, inverted, traced or quantized."""

    exit_code = 4


class DataError(DfqError):
    """A data set or folder that is damaged, foreign, unreadable or unwritable."""

    exit_code = 5


class DivergedError(DfqError):
    """An optimization whose loss is no longer finite."""

    exit_code = 6


class ArtifactError(DfqError):
    """An exported artifact that could not be written, or failed its checks.

    Args:
        message: what is wrong.
        faults: what differs from the torch model, layer by layer where that can be told.
    """

    exit_code = 7

    def __init__(self, message: str, *, faults: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.faults = tuple(faults)


class ContractError(DfqError):
    """A plugin that does not keep the contract of its kind."""

    exit_code = 8


INTERRUPTED_EXIT_CODE = 130
"""Exit code after Ctrl-C, as shells expect it (128 + SIGINT)."""


def first_line(error: BaseException) -> str:
    r"""Return the first line of an error's message, or its type where the message is empty.

    >>> first_line(ValueError("no such layer\nmore")), first_line(KeyError())
    ('no such layer', 'KeyError')
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint naming the known name nearest to `name`, or an empty string.

    >>> nearest("brevitsa", ["brevitas", "torch-ao"])
    " Did you mean 'brevitas'?"
    >>> nearest("xyz", ["brevitas"])
    ''
    """
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {matches[0]!r}?" if matches else ""
