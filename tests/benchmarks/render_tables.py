"""What the rendered pages share: tables, cells and the line of origin."""

from __future__ import annotations

from typing import Any

ALL_OF_THE_SHIFT = "brevitas w4a4, strength 1"
"""A column of the calibration results: bias correction restores the full shift, as real data allows."""


def is_throughout(column: str) -> bool:
    """Whether image and additions are as narrow as the rest in a column of the calibration results."""
    return "throughout" in column


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table, all columns but the first aligned right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows]) + "\n"


def accuracies(seeds: dict[str, Any] | None) -> list[float]:
    """Return the accuracies of a cell, one for each seed; none where nothing was measured."""
    return [one["accuracy"] for one in (seeds or {}).values()]


def figure(values: list[float]) -> str:
    """Return mean and spread of a cell."""
    if not values:
        return "-"
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.2f}"
    spread = (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5
    return f"{mean:.2f} ± {spread:.2f}"


def origin(record: dict[str, Any]) -> str:
    """Return a line that says where a result comes from."""
    where = record["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    kind = f"{where['processor']} ({where['instructions']})" if "instructions" in where else where["processor"]
    return f"*{kind}, {where['processors']} processors; Python {where['python']}, {versions}.*\n"
