"""A rejected artifact on the command line and in the report: everything else is done, and the exit code says so."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

import dfq_plugins
from dfq_plugins.cli.results import print_run, require_artifacts, run_as_dict
from dfq_plugins.demo.network import DIGITS_SPEC, digits_network
from dfq_plugins.errors import ArtifactError, DataError
from dfq_plugins.quantization.notices import silenced
from dfq_plugins.report.sections import rejected_section
from dfq_plugins.testing.material import smooth_noise
from dfq_torch_ao import export
from dfq_torch_ao.notices import NOTICES

if TYPE_CHECKING:
    from pathlib import Path

    from dfq_plugins.quantization.result import QuantizationRun


@pytest.fixture
def rejected_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> QuantizationRun:
    def differs(*_arguments: Any, **_settings: Any) -> None:
        raise ArtifactError("The program differs.", faults=["conv: 3 of 9 integers"])

    monkeypatch.setattr(export, "compare_program", differs)
    return dfq_plugins.run_quantization(
        digits_network(), smooth_noise(DIGITS_SPEC), spec=DIGITS_SPEC, calibrator="torch-ao", output=tmp_path
    )


def test_the_model_is_returned_and_the_file_kept(rejected_run: QuantizationRun, tmp_path: Path) -> None:
    assert rejected_run.agreement > 0.8
    assert rejected_run.artifacts == ()
    (rejected,) = rejected_run.rejected
    assert rejected.path == tmp_path / "model.torchscript.pt.rejected"
    with silenced(NOTICES):
        loaded = torch.jit.load(rejected.path)
    assert loaded(smooth_noise(DIGITS_SPEC)).shape == (64, 10)


def test_it_is_printed_and_fails_at_the_end(rejected_run: QuantizationRun, capsys: pytest.CaptureFixture[str]) -> None:
    print_run(rejected_run)
    output = capsys.readouterr().out
    assert "model.torchscript.pt.rejected: The program differs." in output
    assert "  conv: 3 of 9 integers" in output
    with pytest.raises(
        ArtifactError, match=r"^Rejected: model\.torchscript\.pt\. Everything else was written"
    ) as caught:
        require_artifacts(rejected_run.rejected)
    assert caught.value.exit_code == 7
    told = json.loads(json.dumps(run_as_dict(rejected_run), default=str))
    assert told["rejected"][0]["faults"] == ["conv: 3 of 9 integers"]


def test_the_report_shows_what_differs(rejected_run: QuantizationRun) -> None:
    (facts,) = rejected_section(rejected_run.rejected).blocks
    assert ("differs", "conv: 3 of 9 integers") in facts.entries  # type: ignore[union-attr]
    assert facts.title == "model.torchscript.pt.rejected"  # type: ignore[union-attr]


def test_a_folder_that_is_a_file_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is a file"):
        dfq_plugins.run_quantization(
            digits_network(), smooth_noise(DIGITS_SPEC), calibrator="torch-ao", output=tmp_path / "file"
        )
