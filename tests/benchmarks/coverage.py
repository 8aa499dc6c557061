"""Which networks work in which framework: one process per cell, with limits of time and memory.

A process per network loads everything and builds the network once; each cell is forked from it.

    python tests/benchmarks/coverage.py [--models PATTERN ...] [--frameworks NAME ...] [--again] [--jobs 1] [--docs]

Each finished cell is one line of JSON in `results/coverage.jsonl`; an interrupted run goes on where it stopped, and a
rerun measures only what is missing, or with `--again` everything that the patterns name. `--docs` writes
docs/coverage.md from that file and measures nothing. timm's networks need `pip install -e ".[coverage]"`.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from coverage_page import COLUMNS, summary, write_page
from coverage_process import Ended, Limits, run_forked

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "results" / "coverage.jsonl"
SEED = 0
BEFORE_WORK = ("accept", "prepare")
"""Steps in which a refusal costs nothing."""

LOWEST_CORRELATION = 0.9

Record = dict[str, Any]


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
    record.pop("finished", None)
    return record | {"peak_mebibytes": ended.peak_mebibytes, "processor_seconds": ended.processor_seconds}


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


def measure_network(name: str, columns: list[str], path: Path, limits: Limits) -> None:
    """Build a network, measure its cells one after the other, and add each to the file as soon as it is done."""
    from coverage_cell import about, load_frameworks, measure
    from coverage_networks import NETWORKS

    load_frameworks(columns)
    row = NETWORKS[name]
    network, head, described = row.settled(), commit(), about()
    for column in columns:
        ended = run_forked(lambda write, column=column: measure(row, network, column, write), limits)  # type: ignore[misc]
        record = record_of(name, column, ended) | {"commit": head, "environment": described}
        append_record(path, record)
        print(line_of(record), flush=True)


def measure(cells: dict[str, list[str]], arguments: argparse.Namespace) -> None:
    """Measure cells, as many networks at a time as there are jobs."""

    def one(name: str) -> None:
        command = [sys.executable, __file__, "--network", name, "--frameworks", *cells[name]]
        limits = ["--seconds", str(arguments.seconds), "--mebibytes", str(arguments.mebibytes)]
        subprocess.run([*command, *limits, "--results", str(arguments.results)], check=False)

    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(one, cells))


def line_of(record: Record) -> str:
    """Return a cell as one line of text."""
    message = record["error"]["message"].splitlines()[0] if "error" in record else ""
    where, step = f"{record['network']} {record['column']}", record.get("step", "")
    correlation = "" if record.get("correlation") is None else f"{record['correlation']:.3f}"
    return f"{record['status']:8s}{where:62s}{record['processor_seconds']:6.1f} s {correlation:6s}{step:16s}{message}"


def main() -> None:
    """Measure what is missing, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[], metavar="PATTERN")
    parser.add_argument("--frameworks", nargs="+", default=list(COLUMNS), choices=COLUMNS)
    parser.add_argument("--again", action="store_true", help="measure the chosen cells even if the file has them")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=Limits.processor_seconds, help="processor time of one cell")
    parser.add_argument("--mebibytes", type=int, default=Limits.mebibytes, help="limit of one cell")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of the records")
    parser.add_argument("--network", help=argparse.SUPPRESS)
    parser.add_argument("--docs", action="store_true", help="write docs/coverage.md and measure nothing")
    arguments = parser.parse_args()
    if arguments.docs:
        write_page(read_records(arguments.results))
        return
    if arguments.network:
        limits = Limits(processor_seconds=arguments.seconds, mebibytes=arguments.mebibytes)
        measure_network(arguments.network, arguments.frameworks, arguments.results, limits)
        return
    from coverage_networks import NETWORKS

    names = chosen(list(NETWORKS), arguments.models) or parser.error(f"no network fits {arguments.models}")
    known = {} if arguments.again else read_records(arguments.results)
    missing = {name: [one for one in arguments.frameworks if (name, one) not in known] for name in names}
    arguments.results.parent.mkdir(exist_ok=True)
    measure({name: columns for name, columns in missing.items() if columns}, arguments)
    records = read_records(arguments.results)
    write_records(arguments.results, records)
    print(summary(list(records.values())))


if __name__ == "__main__":
    main()
