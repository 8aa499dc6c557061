"""The coverage table: how a cell is judged and limited, that its file can be resumed, and that the page shows it."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from benchmark_modules import benchmark_module
from dfq_plugins.errors import ModelError
from places import DOCS
from tiny_networks import TinyNetwork

if TYPE_CHECKING:
    from pathlib import Path

CELL, NETWORKS, PAGE, PROCESS, TABLE = (
    benchmark_module(f"coverage{name}") for name in ("_cell", "_networks", "_page", "_process", "")
)
REFUSAL = {"type": "ModelError", "message": "No.", "of_product": True, "names_place": True}


def record(status: str, column: str = "brevitas", **parts: Any) -> dict[str, Any]:
    known = {"network": "net", "column": column, "status": status, "seed": 0, "commit": "abc", "processor_seconds": 1.0}
    return known | {"seconds": {"prepare": 2.0, "export": 1.4}} | parts


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ({"correlation": 0.95}, "works"),
        ({"correlation": 0.85}, "wrong"),
        ({"correlation": None}, "wrong"),
        ({"samples": 8}, "works"),
        ({"step": "prepare", "error": REFUSAL}, "refused"),
        ({"step": "accept", "error": REFUSAL}, "refused"),
        ({"step": "calibrate", "error": REFUSAL}, "failed"),
        ({"step": "prepare", "error": REFUSAL | {"names_place": False}}, "failed"),
        ({"step": "prepare", "error": REFUSAL | {"of_product": False}}, "failed"),
    ],
)
def test_only_what_is_rejected_early_and_names_a_place_counts_as_refused(parts: dict[str, Any], status: str) -> None:
    assert TABLE.status_of(parts) == status


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ("resnet.py:12: `x = x.item()` depends on values.", True),
        ("The layer features.0 has no kernel.", True),
        ("The layer 'linear' has no kernel.", True),
        ("A linear layer has no kernel.", False),
        ("The model must return one tensor, got tuple.", False),
    ],
)
def test_a_message_names_a_line_or_a_module_by_its_full_name(message: str, named: bool) -> None:
    network = nn.ModuleDict({"features": nn.Sequential(nn.Conv2d(3, 3, 1)), "linear": nn.Linear(2, 2)})
    assert CELL.names_place(message, network) is named


def test_an_error_record_tells_the_cause_and_the_line_of_the_product() -> None:
    def fail() -> None:
        try:
            {}["conv"]
        except KeyError as error:
            raise ModelError("Refused.") from error

    with pytest.raises(ModelError) as caught:
        fail()
    found = CELL.error_record(str(caught.value), caught.value, TinyNetwork())
    assert (found["type"], found["message"], found["cause"]) == ("ModelError", "Refused.", "KeyError: 'conv'")
    assert found["raised"].startswith("tests/docs/test_coverage_table.py:")
    assert found["of_product"]


def wait(write: Any) -> None:
    write({"step": "prepare"})
    time.sleep(60)


def spin(write: Any) -> None:
    write({"step": "prepare"})
    while True:
        pass


def fill(write: Any) -> None:
    write({"step": "prepare"})
    kept = bytearray(10**9)
    time.sleep(60 + len(kept))


def leave(write: Any) -> None:
    write({"step": "prepare"})
    os.write(1, b"Segmentation\n")
    raise SystemExit(3)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("work", "limits", "reason"),
    [
        (wait, {"seconds": 0.2}, "more than 0 s"),
        (spin, {"processor_seconds": 0.2}, "more than 0 s of processor time"),
        (fill, {"mebibytes": 1000}, "more than 1000 MiB of memory"),
        (leave, {}, "the process ended with 3: Segmentation"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_cell_that_ends_early_says_why_and_in_which_step(work: Any, limits: dict[str, Any], reason: str) -> None:
    ended = PROCESS.run_forked(work, PROCESS.Limits(**limits))
    found = TABLE.record_of("net", "brevitas", ended)
    assert (found["status"], found["step"], found["error"]["message"]) == ("failed", "prepare", reason)


def test_a_torn_line_is_measured_again_and_the_last_record_of_a_cell_counts(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    TABLE.append_record(path, record("failed"))
    path.write_text(path.read_text() + '{"network": "net", "col')
    TABLE.append_record(path, record("works"))
    records = TABLE.read_records(path)
    assert [one["status"] for one in records.values()] == ["works"]
    TABLE.write_records(path, records)
    assert [json.loads(line)["status"] for line in path.read_text().splitlines()] == ["works"]


def test_patterns_are_globs_or_parts_of_names() -> None:
    names = ["timm/resnet10t", "torchvision/resnet18", "torchvision/video.s3d"]
    assert TABLE.chosen(names, ["*18", "video"]) == names[1:]
    assert TABLE.chosen(names, []) == names


def test_the_rows_are_settled_so_that_no_branch_is_off() -> None:
    row = NETWORKS.Network("tiny", lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), (3, 8, 8), samples=4)
    network = row.settled()
    norm = network[1]
    assert len(norm.weight.unique()) == len(norm.bias.unique()) == 4
    with torch.no_grad():
        measured = network[0](
            torch.cat([batch for seed in range(100, 100 + NETWORKS.BATCH_NORM_PASSES) for batch in row.batches(seed)])
        )
    torch.testing.assert_close(norm.running_mean, measured.mean((0, 2, 3)))
    assert (norm.momentum, norm.training) == (0.1, False)


def test_every_kind_of_input_has_batches() -> None:
    shape = (3, 8, 8)
    batches = {
        takes: NETWORKS.Network("n", TinyNetwork, shape, 2, takes).batches(0) for takes in ("tensor", "pair", "images")
    }
    (tensor,), (pair,), (images,) = batches.values()
    assert tensor.shape == pair[0].shape == pair[1].shape == (2, *shape)
    assert [image.shape for image in images] == [shape] * 2


def test_detectors_are_compared_whatever_the_order_of_their_boxes() -> None:
    boxes, scores = torch.tensor([[0.0, 0, 40, 40], [30, 10, 90, 90]]), torch.tensor([0.9, 0.4])
    one, other = [{"boxes": boxes, "scores": scores}], [{"boxes": boxes.flip(0), "scores": scores.flip(0)}]
    assert torch.equal(CELL.flat_outputs([one]), CELL.flat_outputs([other]))


def test_the_page_lists_what_does_not_work_and_the_shares() -> None:
    error = REFUSAL | {"message": "No kernel for 'act'.\nMore."}
    cells = [
        record("works", correlation=0.99, decibels=30.2, float_layers=1),
        record("failed", column="torch-ao", step="convert", error=error | {"of_product": False, "type": "KeyError"}),
    ]
    page = PAGE.page({(one["network"], one["column"]): one for one in cells})
    assert "| `net` | - | **failed** (convert) | - | - | - | 0.990, 30 dB, 1 in float, 3 s | - |" in page
    assert "- **`net`, torch-ao**, failed in convert: `KeyError: No kernel for 'act'.`" in page
    assert "| all | 2 | 1 | 0 | 0 | 1 | 50.0 |" in page


def test_the_page_is_the_one_that_the_script_writes() -> None:
    assert (DOCS / "coverage.md").read_text(encoding="utf-8") == PAGE.page(TABLE.read_records(TABLE.RESULTS))
