"""`dfq distill` and `dfq prune`: arguments, output, reports, and what goes on to `dfq quantize`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from command_line import CLASSES, SPEC, network_file, run

if TYPE_CHECKING:
    from pathlib import Path


NETWORK = """
import torch
from torch import nn

def network(width=8):
    rng = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3))
    model += nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=rng) - 0.5)
        model[1].running_mean += torch.rand(width, generator=rng)
        model[1].running_var *= 0.5
    return model

def small():
    return network(4)

def unseeded():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))

def wide():
    return network(20)
"""
QUICK = ["-T", "steps=4", "-T", "batch_size=8", "-T", "num_evaluations=2"]


@pytest.fixture
def model(tmp_path: Path) -> str:
    return network_file(tmp_path, NETWORK)


@pytest.fixture
def small(model: str) -> str:
    return model.replace(":network", ":small")


@pytest.fixture
def folder(model: str, tmp_path: Path) -> Path:
    run("synthesize", model, "-o", tmp_path / "set", "--generator", "gaussian", "-n", 24, *SPEC, *CLASSES)
    return tmp_path / "set"


class TestPrune:
    def test_from_filters_to_quantization(self, model: str, folder: Path, tmp_path: Path) -> None:
        out, page = tmp_path / "out", tmp_path / "page.html"
        options = ["-O", "sparsity_steps=3", "--macs", 0.6, "-o", out, "--report", page]
        result = run("prune", model, folder, *QUICK, *options)
        assert "Trained for 7 steps, " in result.stdout
        assert "8 was not pruned: its filters are the network's outputs" in result.stdout
        assert f"Wrote {out / 'network.json'}" in result.stdout
        html = page.read_text()
        for text in (
            "Pruning by layer",
            "MACs",
            "same class as the original network",
            "held-out divergence",
        ):
            assert text in html
        quantized = run(
            "quantize",
            f"saved:{out}",
            folder,
            "--calibrator",
            "pytorch-quantization",
            "-o",
            tmp_path / "q",
            "--json",
            "--allow-other-network",
        )
        assert json.loads(quantized.stdout)["coverage"]["quantized"]
        assert (tmp_path / "q" / "model_qdq.onnx").is_file()
        assert "saved:" in run("quantize", "nothing", folder, "--calibrator", "torch-ao", code=2).stderr

    def test_single_weights_as_json(self, model: str, folder: Path) -> None:
        told = json.loads(run("prune", model, folder, *QUICK, "--sparsity", 0.5, "--json").stdout)
        assert told["method"] == "weights"
        assert told["after"]["nonzero"] < told["before"]["nonzero"]
        assert [point["step"] for point in told["history"]] == [0, 2, 4]

    def test_a_ticket_is_found_and_trained_again(self, model: str, folder: Path, tmp_path: Path) -> None:
        from dfq_plugins.network.load import load_model

        first = {name: value + 0.1 for name, value in load_model(model).state_dict().items()}
        save_file(first, tmp_path / "initial.safetensors")
        out = tmp_path / "out"
        told = run(
            *("prune", model, folder, *QUICK, "--sparsity", 0.5, "-o", out),
            *("--rewind-to", tmp_path / "initial.safetensors"),
        ).stdout
        assert f"Wrote {out / 'ticket' / 'ticket.json'}" in told
        again = ["distill", "--teacher", model, "--data", folder, "--ticket", out / "ticket", *QUICK]
        run(*again, "--student", model)
        assert (
            "The ticket belongs to another model: its architecture has the digest"
            in run(*again, "--student", model.replace(":network", ":small"), code=5).stderr
        )

    def test_a_generator_makes_the_inputs(self, model: str) -> None:
        arguments = ["prune", model, "--generator", "gaussian", "-n", 20, *SPEC, *QUICK, "-O", "sparsity_steps=0"]
        assert json.loads(run(*arguments, "--macs", 0.7, "--json").stdout)["held_out"] == 2

    def test_refusals(self, model: str, folder: Path) -> None:
        told = run("prune", model, folder, *QUICK, "-O", "sparsity_steps=0", "--threshold", 9, code=2).stderr
        assert "The threshold 9 would empty the layer '3': the largest scale of its 8 filters is 0." in told
        assert "Give exactly one amount to prune" in run("prune", model, folder, *QUICK, code=2).stderr
        assert "Did you mean 'keep'?" in run("prune", model, folder, "-O", "kepp=0", code=2).stderr
        assert "Did you mean 'steps'?" in run("prune", model, folder, "-T", "stepps=1", code=2).stderr
        assert "remove --shape" in run("prune", model, folder, *SPEC[:2], "--sparsity", 0.5, code=2).stderr
        assert "name one with --generator" in run("prune", model, folder, "-n", 8, "--sparsity", 0.5, code=2).stderr

    def test_the_settings_are_listed(self) -> None:
        assert "scale_penalty" in run("prune", "--list-options").stdout
        rows = run("prune", "--list-training").stdout.splitlines()
        (row,) = (row for row in rows if "symmetrized_kl_weight" in row)
        assert row.split()[:5] == ["symmetrized_kl_weight", "float", ">=", "0", "1.0"]


class TestDistill:
    def test_it_trains_writes_and_reports(self, model: str, small: str, folder: Path, tmp_path: Path) -> None:
        out, page = tmp_path / "student", tmp_path / "page.html"
        arguments = ["distill", "--teacher", model, "--student", small, "--data", folder, *QUICK]
        result = run(*arguments, "-o", out, "--report", page)
        assert "Trained for 4 steps, " in result.stdout
        assert "teacher" in result.stdout
        assert f"Report: {page}" in result.stdout
        assert "Training progress" in page.read_text()
        assert json.loads((out / "network.json").read_text())["factory"] == "../net.py:small"
        run("quantize", f"saved:{out}", folder, "--allow-other-network", "--calibrator", "pytorch-quantization")

    def test_an_array_of_real_inputs(self, model: str, small: str, tmp_path: Path) -> None:
        import numpy as np

        path = tmp_path / "real.npz"
        np.savez(path, x=np.random.default_rng(0).normal(size=(20, 3, 8, 8)).astype(np.float32))
        arguments = ["distill", "--teacher", model, "--student", small, "--data", path, *SPEC, *QUICK, "--json"]
        told = json.loads(run(*arguments).stdout)
        assert (told["held_out"], told["training"]["steps"]) == (2, 4)

    def test_a_work_folder_keeps_the_training(self, model: str, folder: Path, tmp_path: Path) -> None:
        unseeded = model.replace(":network", ":unseeded")
        arguments = ["distill", "--teacher", model, "--student", unseeded, "--data", folder, *QUICK, "--json"]
        torch.manual_seed(1)
        first = json.loads(run(*arguments, "--work", tmp_path / "work").stdout)
        torch.manual_seed(2)  # a student's first weights depend on the setting seed alone
        again = json.loads(run(*arguments, "--work", tmp_path / "work").stdout)
        assert first["history"] == again["history"]

    def test_a_student_may_begin_with_the_teachers_layers(
        self, model: str, small: str, folder: Path, tmp_path: Path
    ) -> None:
        arguments = ["distill", "--teacher", model, "--data", folder, *QUICK, "--inherit", "--student"]
        result = run(*arguments, model, "-o", tmp_path / "student", "--report", tmp_path / "page.html")
        assert "Initialized 5 layers with the teacher's weights." in result.stdout
        assert json.loads((tmp_path / "student" / "network.json").read_text())["inherited"] == ["0", "1", "3", "4", "8"]
        assert "layers initialized from the teacher" in (tmp_path / "page.html").read_text()
        assert "and there are none: the teacher has '0' (8, 3, 3, 3)" in run(*arguments, small, code=2).stderr

    def test_a_larger_student_is_told(self, model: str, folder: Path) -> None:
        wide = model.replace(":network", ":wide")
        told = run("distill", "--teacher", model, "--student", wide, "--data", folder, *QUICK).stderr
        assert "Warning: The student is larger than the teacher: " in told

    def test_without_inputs(self, model: str, small: str) -> None:
        told = run("distill", "--teacher", model, "--student", small, *SPEC, *QUICK, code=2).stderr
        assert "Training a student needs inputs: give data, or the name of a generator" in told

    def test_slips_are_told_before_anything_is_loaded(self, model: str, small: str, folder: Path) -> None:
        arguments = ["distill", "--teacher", model, "--student", small, "--data", folder]
        assert "Did you mean 'flip'?" in run(*arguments, "-T", "flipp=true", code=2).stderr
        assert "name one with --generator" in run(*arguments, "-G", "lr=1", code=2).stderr
        assert "learning_rate_unit" in run("distill", "--list-training").stdout
