"""A warmed-up parent for tests that need many processes: importing torch once, it forks a child for each job.

Reads one JSON object a line: {"code": ..., "environment": {...}, "log": path} starts a child that runs the code, and
the answer is its process id; {"wait": process id} waits for a child's end, and the answer is its exit code, negative
for a signal.
"""

from __future__ import annotations

import json
import os
import sys
import traceback

import torch

from dfq_plugins import InputSpec, synthesize


def child(job: dict) -> int:
    os.environ.update(job.get("environment", {}))
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    try:
        exec(compile(job["code"], "job", "exec"), {"__name__": "job"})  # noqa: S102  (the tests' own code)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        sys.stderr.flush()
        return 1
    return 0


def warm_up() -> None:
    """Import what is imported on first use only."""
    network = torch.nn.Sequential(torch.nn.BatchNorm2d(1, momentum=1.0), torch.nn.Flatten(), torch.nn.Linear(4, 2))
    network(torch.randn(64, 1, 2, 2))
    synthesize(network, InputSpec((1, 2, 2)), num_samples=1, options={"iterations": 1})


def main() -> None:
    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    warm_up()
    print("ready", flush=True)  # noqa: T201
    for line in sys.stdin:
        job = json.loads(line)
        if "wait" in job:
            answer = os.waitstatus_to_exitcode(os.waitpid(job["wait"], 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                os._exit(child(job))
        print(json.dumps(answer), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
