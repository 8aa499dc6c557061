"""Several inputs on the command line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from command_line import network_file, run
from dfq_plugins.cli.arguments import parse_input
from dfq_plugins.errors import UsageError
from dfq_plugins.types import InputSpec

if TYPE_CHECKING:
    from pathlib import Path

SOURCE = """
from networks_by_input import example

def network():
    return example("image and metadata").network

def dictionary():
    return example("one dictionary").network
"""

INPUTS = ("--input", "image:3,12,12:range=0,1", "--input", "meta:4:mean=0,0,0,0:std=1,1,1,1:range=-2,2")
QUICK = ("--option", "iterations=2", "--option", "compile=never", "--num-samples", "16")
CLASSES = ("--num-classes", "5")


@pytest.fixture
def network(tmp_path: Path) -> str:
    return network_file(tmp_path, SOURCE)


def test_an_input_is_written_as_its_name_shape_and_settings() -> None:
    name, spec = parse_input("meta:2:mean=0,1:std=1,2:range=-1,3")
    assert (name, spec) == ("meta", InputSpec((2,), (0.0, 1.0), (1.0, 2.0), (-1.0, 3.0)))
    assert parse_input("x:3,8,8") == ("x", InputSpec((3, 8, 8)))


@pytest.mark.parametrize(
    "text", ["image", ":3,8,8", "image:3,a", "image:3:scale=1", "image:3:range=1", "i:3:mean=0:mean=1"]
)
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"NAME:SHAPE|lowest and its highest"):
        parse_input(text)


def test_synthesize_extend_inspect_and_quantize(network: str, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    made = json.loads(run("synthesize", network, *INPUTS, *QUICK, *CLASSES, "--output", folder, "--json").stdout)
    assert list(made["input_spec"]["inputs"]) == ["image", "meta"]
    assert made["input_spec"]["num_classes"] == 5
    assert (
        json.loads(run("synthesize", network, "--output", folder, "--extend", 4, "--json").stdout)["num_samples"] == 20
    )
    assert "verdict" in run("inspect", folder, "--model", network).stdout.lower()
    done = run("quantize", network, folder, "--calibrator", "torch-ao", "--output", tmp_path / "out", "--json")
    assert json.loads(done.stdout)["artifacts"]


def test_a_dictionary_is_named_as_the_call(network: str, tmp_path: Path) -> None:
    reference = network.replace(":network", ":dictionary")
    folder = tmp_path / "set"
    result = run("synthesize", reference, *INPUTS, *QUICK, "--call", "dictionary", "--output", folder, "--json")
    assert json.loads(result.stdout)["input_spec"]["call"] == "dictionary"


def test_similarity_reads_an_array_for_each_input(network: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {"image": rng.random((8, 3, 12, 12)), "meta": rng.random((8, 4))}
    np.savez(tmp_path / "real.npz", **{name: array.astype(np.float32) for name, array in arrays.items()})
    assert "real.npz" in run("similarity", network, tmp_path / "real.npz", *INPUTS, "--json").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--shape", "3,12,12"), "--input image:SHAPE --input meta:SHAPE on the command line"),
        ((), "--input image:SHAPE --input meta:SHAPE on the command line"),
        (("--input", "image:3,12,12"), "lacks 'meta'. Add an InputSpec under that name"),
        ((*INPUTS, "--shape", "3,12,12"), "--shape describes a single input, but --input was given"),
        ((*INPUTS, "--input", "meta:4"), "'meta' is given twice"),
        (("--call", "dictionary"), "give each with --input NAME:SHAPE"),
        (("--input", "image"), "An input is given as NAME:SHAPE"),
    ],
)
def test_wrong_inputs_are_refused_with_what_to_give(
    network: str, arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    result = run("synthesize", network, *arguments, "--output", tmp_path / "set", code=2)
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "set").exists()
