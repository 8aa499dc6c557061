"""This process's rank in a distributed run; only this module reads the environment of `torchrun`. Imports no torch.

The ranks of a run need no collective operations and hence no process group. They share only the output folder, in
which each shard is claimed by a lock that the operating system releases when its holder dies (see `storage.locks`).
A collective would make every rank wait for the slowest and fail with the first that dies. With claims, the other ranks
take over its shard, and the machines need nothing in common but the shared folder.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from dfq_plugins.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

_UNNAMED_RUN = "none"
"""The name that `torchrun` gives a run without `--rdzv-id`."""


@dataclass(frozen=True)
class Rank:
    """One process of a run.

    Args:
        index: global rank, from 0.
        count: number of processes of the run on all machines.
        local_index: rank on this machine.
        local_count: number of processes of the run on this machine.
        run: name that the ranks of one run share; runs that might use the same folder have different names.
    """

    index: int = 0
    count: int = 1
    local_index: int = 0
    local_count: int = 1
    run: str = ""

    @classmethod
    def current(cls, environment: Mapping[str, str] | None = None) -> Self:
        """Return the rank that `torchrun` assigned to this process, or that of a single process without `torchrun`.

        Raises:
            UsageError: a variable of `torchrun` does not hold a valid number.

        >>> Rank.current({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}).index
        1
        >>> Rank.current({}).alone
        True
        """
        variables = os.environ if environment is None else environment
        count = _read_count(variables, "WORLD_SIZE", 1, at_least=1)
        if count == 1 or "RANK" not in variables:
            return cls(local_index=_read_count(variables, "LOCAL_RANK", 0))
        index = _read_count(variables, "RANK", 0)
        if index >= count:
            raise UsageError(f"RANK must be below WORLD_SIZE ({count}), got {index}. Start the ranks with torchrun.")
        return cls(
            index=index,
            count=count,
            local_index=_read_count(variables, "LOCAL_RANK", 0),
            local_count=_read_count(variables, "LOCAL_WORLD_SIZE", 1, at_least=1),
            run=_run_name(variables),
        )

    @property
    def alone(self) -> bool:
        """Whether the run has no other processes."""
        return self.count == 1

    @property
    def leads(self) -> bool:
        """Whether this rank reports for the run."""
        return self.index == 0

    def device(self, name: str) -> str:
        """Return the device of this rank: `cuda` without an index means one GPU per rank of a machine.

        >>> Rank(1, 4, 1, 2).device("cuda"), Rank(1, 4, 1, 2).device("cpu")
        ('cuda:1', 'cpu')
        """
        return f"cuda:{self.local_index}" if name == "cuda" else name

    def threads(self) -> int | None:
        """Return this rank's share of the machine's cores, or None to keep torch's default.

        `torchrun` sets OMP_NUM_THREADS to 1 if it is not set. Any other value was set by the user and is respected.
        """
        if self.local_count == 1 or os.environ.get("OMP_NUM_THREADS", "1") != "1":
            return None
        return max(1, _available_cores() // self.local_count)


def _available_cores() -> int:
    """Return the number of cores available to this process."""
    affinity = getattr(os, "sched_getaffinity", None)  # not available on every system
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def _run_name(variables: Mapping[str, str]) -> str:
    name = variables.get("TORCHELASTIC_RUN_ID", _UNNAMED_RUN)
    if name == _UNNAMED_RUN:
        name = f"{variables.get('MASTER_ADDR')}:{variables.get('MASTER_PORT')}"
    return hashlib.sha256(name.encode()).hexdigest()[:12]  # valid in a file name whatever the user chose


def _read_count(variables: Mapping[str, str], name: str, default: int, *, at_least: int = 0) -> int:
    text = variables.get(name, str(default))
    if not text.isdecimal() or int(text) < at_least:
        raise UsageError(
            f"{name} must be a whole number of at least {at_least}, got {text!r}. Start the ranks with torchrun."
        )
    return int(text)
