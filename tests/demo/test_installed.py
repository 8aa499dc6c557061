"""The demo with the plugins that are really installed, on fewer samples: the way that a newcomer's first run takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dfq_plugins.demo import run, sources
from dfq_plugins.demo.run import ready, run_demo
from dfq_plugins.host.registry import get_registry

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.slow
def test_installed_frameworks_keep_the_digits_accuracy_at_eight_bits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sources, "NUM_SAMPLES", 64)
    monkeypatch.setattr(run, "FRAMEWORKS", ())  # every installed one, not only those that the demo shows
    result = run_demo(tmp_path)
    calibrators = ready(get_registry().calibrators)
    assert {"gaussian", "inception", "bns", "bns+inception"} <= set(result.sources)
    assert not {name for name in result.sources if name.startswith("record-")} | {"adversarial", "gdfq"} & set(
        result.sources
    )
    assert {name for name, _ in result.artifacts} == set(calibrators)
    for source in result.sources:
        for calibrator in calibrators:
            accuracy = result.accuracy(source, calibrator, "w8a8")
            assert accuracy is not None, result.refusals
            assert accuracy > result.float_accuracy - 1, (source, calibrator)
    for _, artifact in result.artifacts:
        assert artifact.path.stat().st_size == artifact.size_bytes
        assert artifact.checks
    html = result.report.read_text(encoding="utf-8")
    assert all(calibrator in html for calibrator in calibrators)
