"""Which process of a distributed run this is: the one place that reads the environment of `torchrun`. Imports no torch.

The ranks of a run need no collective operation, and so no process group: all that they share is the output folder, in
which each shard is claimed by a lock that the operating system frees when its holder dies (see `storage.locks`).
A collective would make every rank wait for the slowest and fail with the first that dies; claims let the others take
over its shard, and work between machines that reach one another by nothing but the shared folder.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from dfq_plugins.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

_NO_NAME = "none"
"""What `torchrun` names a run to which the user gave no `--rdzv-id`."""


@dataclass(frozen=True)
class Rank:
    """One process of a run.

    Args:
        index: its number, from 0.
        count: how many processes the run has, on all machines.
        local_index: its number on its machine.
        local_count: how many processes the run has on its machine.
        run: name that the ranks of one run share, and no two runs that are likely to meet in a folder.
    """

    index: int = 0
    count: int = 1
    local_index: int = 0
    local_count: int = 1
    run: str = ""

    @classmethod
    def current(cls, environment: Mapping[str, str] | None = None) -> Self:
        """Return the rank that `torchrun` made this process, or the only one where it was started otherwise.

        Raises:
            UsageError: a variable of `torchrun` holds no number that fits.

        >>> Rank.current({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}).index
        1
        >>> Rank.current({}).alone
        True
        """
        variables = os.environ if environment is None else environment
        count = _number(variables, "WORLD_SIZE", 1, at_least=1)
        if count == 1 or "RANK" not in variables:
            return cls(local_index=_number(variables, "LOCAL_RANK", 0))
        index = _number(variables, "RANK", 0)
        if index >= count:
            raise UsageError(f"RANK must be below WORLD_SIZE ({count}), got {index}. Start the ranks with torchrun.")
        return cls(
            index=index,
            count=count,
            local_index=_number(variables, "LOCAL_RANK", 0),
            local_count=_number(variables, "LOCAL_WORLD_SIZE", 1, at_least=1),
            run=_run_name(variables),
        )

    @property
    def alone(self) -> bool:
        """Whether the run has no other process."""
        return self.count == 1

    @property
    def leads(self) -> bool:
        """Whether this is the rank that speaks for the run."""
        return self.index == 0

    def device(self, name: str) -> str:
        """Return the device of this rank: `cuda` alone means one GPU for each rank of a machine.

        >>> Rank(1, 4, 1, 2).device("cuda"), Rank(1, 4, 1, 2).device("cpu")
        ('cuda:1', 'cpu')
        """
        return f"cuda:{self.local_index}" if name == "cuda" else name

    def threads(self) -> int | None:
        """Return this rank's share of the machine's cores; None leaves torch's own number.

        `torchrun` sets OMP_NUM_THREADS to 1 where it is not set. Any other value is the user's, and stays.
        """
        if self.local_count == 1 or os.environ.get("OMP_NUM_THREADS", "1") != "1":
            return None
        return max(1, _cores() // self.local_count)


def _cores() -> int:
    """Return how many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def _run_name(variables: Mapping[str, str]) -> str:
    name = variables.get("TORCHELASTIC_RUN_ID", _NO_NAME)
    if name == _NO_NAME:
        name = f"{variables.get('MASTER_ADDR')}:{variables.get('MASTER_PORT')}"
    return hashlib.sha256(name.encode()).hexdigest()[:12]  # fits into a file's name whatever the user chose


def _number(variables: Mapping[str, str], name: str, default: int, *, at_least: int = 0) -> int:
    text = variables.get(name, str(default))
    if not text.isdecimal() or int(text) < at_least:
        raise UsageError(f"{name} must be a whole number from {at_least} on, got {text!r}. Start with torchrun.")
    return int(text)
