"""Which networks work in which framework: one process per cell, with limits of time and memory.

    python tests/benchmarks/coverage.py [--models PATTERN ...] [--frameworks NAME ...] [--again] [--jobs 1] [--docs]

Each finished cell is one line of JSON in `results/coverage.jsonl`; an interrupted run goes on where it stopped, and a
rerun measures only what is missing, or with `--again` everything that the patterns name. `--docs` writes
docs/coverage.md from that file and measures nothing. timm's networks need `pip install -e ".[coverage]"`.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from coverage_page import COLUMNS, summary, write_page

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "results" / "coverage.jsonl"
CELL = FOLDER / "coverage_cell.py"
SEED = 0
POLL_SECONDS = 0.1
BEFORE_WORK = ("accept", "prepare")
"""Steps in which a refusal costs nothing."""

LOWEST_CORRELATION = 0.9

Record = dict[str, Any]


@dataclass(frozen=True)
class Limits:
    """What one cell may use.

    Args:
        seconds: time from the moment at which the network is built.
        building_seconds: time for building it.
        mebibytes: resident memory of the process.
    """

    seconds: float = 240.0
    building_seconds: float = 300.0
    mebibytes: int = 8192


@dataclass(frozen=True)
class Ended:
    """How a cell's process ended: the parts that it wrote, the most memory that it had, and why it was killed."""

    parts: list[Record]
    peak_mebibytes: int
    return_code: int
    killed: str | None
    seconds: float
    last_words: str


def run_process(command: list[str], limits: Limits) -> Ended:
    """Run a cell's process, which writes parts of its record to the file named last, and kill it at a limit."""
    with tempfile.TemporaryDirectory() as folder:
        path, log = Path(folder) / "parts.jsonl", Path(folder) / "log"
        path.touch()
        # Its own temporary folder goes with it when it is killed.
        environment = {**os.environ, "TMPDIR": folder}
        with log.open("w") as output:
            process = subprocess.Popen(
                [*command, str(path)], stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=folder
            )
            began, ready, peak, killed = time.monotonic(), None, 0, None
            while process.poll() is None:
                time.sleep(POLL_SECONDS)
                peak = max(peak, _peak_mebibytes(process.pid))
                now = time.monotonic()
                if ready is None and '"ready"' in path.read_text():
                    ready = now
                killed = killed or _exceeded(limits, now - began, None if ready is None else now - ready, peak)
                if killed:
                    process.kill()
        seconds = time.monotonic() - (ready or began)
        parts = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
        last = (log.read_text(errors="replace").strip().splitlines() or [""])[-1]
    return Ended(parts, peak, process.returncode, killed, seconds, last)


def _exceeded(limits: Limits, total: float, working: float | None, peak: int) -> str | None:
    if peak > limits.mebibytes:
        return f"more than {limits.mebibytes} MiB of memory"
    if working is None:
        return f"more than {limits.building_seconds:.0f} s to build" if total > limits.building_seconds else None
    return f"more than {limits.seconds:.0f} s" if working > limits.seconds else None


def _peak_mebibytes(process: int) -> int:
    """Return the peak resident memory of a process; 0 if it is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM")), 0)


def record_of(network: str, column: str, ended: Ended) -> Record:
    """Return the record of a cell, with its status."""
    record: Record = {"network": network, "column": column, "seed": SEED}
    for part in ended.parts:
        record |= part
    if ended.killed or not record.get("finished"):
        reason = ended.killed or f"the process ended with {ended.return_code}: {ended.last_words}"
        record["error"] = {"type": "", "message": reason, "of_product": False, "names_place": False}
        record.setdefault("step", "build")
    record["status"] = status_of(record)
    if record["status"] == "works":
        record.pop("step", None)
    record.pop("ready", None)
    record.pop("finished", None)
    return record | {"peak_mebibytes": ended.peak_mebibytes, "total_seconds": round(ended.seconds, 1)}


def status_of(record: Record) -> str:
    """Return `works`, `wrong`, `refused` or `failed`.

    Refused is what the product rejects before any work, naming a module or line. Wrong is a network that runs, but
    whose outputs have little to do with those of the float network.
    """
    error = record.get("error")
    if error is not None:
        early = record["step"] in BEFORE_WORK
        return "refused" if early and error["of_product"] and error["names_place"] else "failed"
    if "correlation" in record and (record["correlation"] or 0.0) < LOWEST_CORRELATION:
        return "wrong"
    return "works"


def read_records(path: Path) -> dict[tuple[str, str], Record]:
    """Return the last record of each cell."""
    lines = path.read_text().splitlines() if path.is_file() else []
    records = [json.loads(line) for line in lines if line.endswith("}")]  # a killed run may leave half a line
    return {(record["network"], record["column"]): record for record in records}


def write_records(path: Path, records: dict[tuple[str, str], Record]) -> None:
    """Write one line per cell, in order, in one step."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(records[cell], sort_keys=True) + "\n" for cell in sorted(records)))
    temporary.replace(path)


def append_record(path: Path, record: Record) -> None:
    """Add a line to the file, on a new line even after half a one."""
    torn = path.is_file() and path.stat().st_size and not path.read_text().endswith("\n")
    with path.open("a") as file:
        file.write(("\n" if torn else "") + json.dumps(record, sort_keys=True) + "\n")


def commit() -> str:
    """Return the commit of the checkout, marked if files differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=FOLDER, capture_output=True, text=True, check=False).stdout

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/dfq_plugins", ":/adapters")
    return git("rev-parse", "--short=12", "HEAD").strip() + ("+" if changed.strip() else "")


def chosen(names: list[str], patterns: list[str]) -> list[str]:
    """Return the names that fit a pattern: a glob, or a part of the name."""
    return [
        name for name in names if not patterns or any(fnmatch.fnmatch(name, one) or one in name for one in patterns)
    ]


def measure(cells: list[tuple[str, str]], path: Path, limits: Limits, jobs: int) -> None:
    """Measure cells, `jobs` at a time, and add each to the file as soon as it is done."""
    lock, head = Lock(), commit()

    def one(cell: tuple[str, str]) -> None:
        record = record_of(*cell, run_process([sys.executable, str(CELL), *cell], limits)) | {"commit": head}
        with lock:
            append_record(path, record)
            print(line_of(record), flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, cells))


def line_of(record: Record) -> str:
    """Return a cell as one line of text."""
    message = record["error"]["message"].splitlines()[0] if "error" in record else ""
    where, step = f"{record['network']} {record['column']}", record.get("step", "")
    correlation = "" if record.get("correlation") is None else f"{record['correlation']:.3f}"
    return f"{record['status']:8s}{where:62s}{record['total_seconds']:6.1f} s {correlation:6s}{step:16s}{message}"


def main() -> None:
    """Measure what is missing, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[], metavar="PATTERN")
    parser.add_argument("--frameworks", nargs="+", default=list(COLUMNS), choices=COLUMNS)
    parser.add_argument("--again", action="store_true", help="measure the chosen cells even if the file has them")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=Limits.seconds, help="limit of one cell")
    parser.add_argument("--mebibytes", type=int, default=Limits.mebibytes, help="limit of one cell")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of the records")
    parser.add_argument("--docs", action="store_true", help="write docs/coverage.md and measure nothing")
    arguments = parser.parse_args()
    if arguments.docs:
        write_page(read_records(arguments.results))
        return
    from coverage_networks import NETWORKS

    names = chosen(list(NETWORKS), arguments.models) or parser.error(f"no network fits {arguments.models}")
    known = {} if arguments.again else read_records(arguments.results)
    cells = [(name, column) for name in names for column in arguments.frameworks if (name, column) not in known]
    arguments.results.parent.mkdir(exist_ok=True)
    measure(cells, arguments.results, Limits(seconds=arguments.seconds, mebibytes=arguments.mebibytes), arguments.jobs)
    records = read_records(arguments.results)
    write_records(arguments.results, records)
    print(summary(list(records.values())))


if __name__ == "__main__":
    main()
