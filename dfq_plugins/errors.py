"""The errors that the host raises, each with its command-line exit code.

A message states the rule, the value that broke it, and the next step.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable


class DfqError(Exception):
    """Base class of all errors that dfq-plugins raises on purpose."""

    exit_code: ClassVar[int] = 1


INTEGER_INPUTS = (
    "Integers, such as token ids or class indices, can be neither optimized nor quantized: quantize the part of the "
    "network behind their embedding, as a module that takes what the embedding returns, with an InputSpec of that "
    "shape, and keep the embedding in front of it."
)
"""What to do about integer inputs."""


class DfqWarning(UserWarning):
    """Base class of all warnings that dfq-plugins issues."""


class UsageError(DfqError, ValueError):
    """An argument, option, recipe or count is invalid."""

    exit_code = 2


class PluginError(DfqError):
    """A plugin is unknown, broken or ambiguous, or its framework is not installed."""

    exit_code = 3


class ModelError(DfqError):
    """A model cannot be loaded, inverted, traced or quantized."""

    exit_code = 4


class DataError(DfqError):
    """A data set or folder is damaged, unreadable or not writable, or belongs to something else."""

    exit_code = 5


class DivergedError(DfqError):
    """The loss of an optimization is no longer finite."""

    exit_code = 6


class ArtifactError(DfqError):
    """An exported artifact could not be written, or failed its checks.

    Args:
        message: what is wrong.
        faults: what differs from the torch model, by layer where that is known.
    """

    exit_code = 7

    def __init__(self, message: str, *, faults: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.faults = tuple(faults)


class ContractError(DfqError):
    """A plugin violates the contract of its kind."""

    exit_code = 8


INTERRUPTED_EXIT_CODE = 130
"""Exit code after Ctrl-C, as shells expect (128 + SIGINT)."""


def first_line(error: BaseException) -> str:
    r"""Return the first line of an error's message, or its type if the message is empty.

    >>> first_line(ValueError("no such layer\nmore")), first_line(KeyError())
    ('no such layer', 'KeyError')
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint with the known name closest to `name`, or an empty string.

    >>> nearest("brevitsa", ["brevitas", "torch-ao"])
    " Did you mean 'brevitas'?"
    >>> nearest("xyz", ["brevitas"])
    ''
    """
    # torch_ao means torch-ao, although torchao has more letters in common with it.
    names = list(known)
    same = [one for one in names if one.replace("-", "_") == name.replace("-", "_")]
    matches = same or difflib.get_close_matches(name, names, n=1)
    return f" Did you mean {matches[0]!r}?" if matches else ""
