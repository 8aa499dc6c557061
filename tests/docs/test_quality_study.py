"""The study behind the score: its record fits the code of today, and the page shows what the record holds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from scipy import stats

from dfq_plugins.quality import verdict
from places import ROOT

if TYPE_CHECKING:
    from pathlib import Path

RECORDS = sorted((ROOT / "tests" / "benchmarks" / "results").glob("quality-*.json"))
PAGE = (ROOT / "docs" / "quality.md").read_text(encoding="utf-8")


def read(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_the_recorded_scores_are_those_of_the_formula(path: Path) -> None:
    for name, entry in read(path)["sets"].items():
        found = entry["inspection"]
        assert found["score"] == pytest.approx(verdict.score(found["surprise"], found["range_error"])), name


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_the_recorded_correlation_is_that_of_the_sets_and_stands_on_the_page(path: Path) -> None:
    record = read(path)
    entries = record["sets"].values()
    assert len(entries) > 2
    pairs = [(entry["inspection"]["score"], entry["accuracy"]) for entry in entries]
    rank = float(stats.spearmanr(*zip(*pairs, strict=True)).statistic)
    assert record["spearman"]["score"] == pytest.approx(rank)
    (row,) = [line for line in PAGE.splitlines() if line.startswith("| score |")]
    assert f" {rank:.2f} |" in row


def test_on_resnet20_the_score_predicts_and_its_threshold_holds() -> None:
    sets = read(ROOT / "tests" / "benchmarks" / "results" / "quality-resnet20_cifar10.json")
    assert len(sets["sets"]) >= 30
    assert sets["spearman"]["score"] >= 0.8
    real = [sets["sets"][f"real, {count}"]["accuracy"] for count in (16, 64, 256, 1024)]
    for name, entry in sets["sets"].items():
        if entry["inspection"]["score"] >= verdict.ENOUGH_FOR_W4A4:
            assert entry["accuracy"] >= sum(real) / 4 - 1, name


def test_the_page_states_the_formula_of_the_code() -> None:
    formula = f"100 / (1 + max(surprise / {verdict.SURPRISE_UNIT}, range error / {verdict.RANGE_UNIT}))"
    assert formula in PAGE
    assert f"{verdict.ENOUGH_FOR_W4A4:.0f} and above is *enough for W4A4*" in PAGE
    assert f"{verdict.ENOUGH_FOR_W8A8:.0f} and above *enough for W8A8*" in PAGE
