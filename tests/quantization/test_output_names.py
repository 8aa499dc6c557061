"""Names of outputs in files: legal, reversible, and in the order of the tensors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dfq_plugins.network.outputs import named_outputs
from dfq_plugins.quantization.output_names import exportable, file_name, path_of
from output_networks import NAMES, output_network, output_samples


@pytest.mark.parametrize("path", ["output", "out", "0", "0.boxes", "heads.1", "input", "outputs", "output_map"])
def test_a_name_leads_back_to_its_path(path: str) -> None:
    name = file_name(path)
    assert path_of(name) == path
    assert not name[0].isdigit()  # torch refuses names that are numbers
    assert name != "input"


def test_an_output_may_have_the_name_of_an_input() -> None:
    names = [file_name(path, ["image", "mask"]) for path in ("image", "mask", "score")]
    assert names == ["output_image", "output_mask", "score"]
    assert [path_of(name, ["image", "mask"]) for name in names] == ["image", "mask", "score"]


def test_qonnx_has_a_name_of_its_own() -> None:
    assert path_of("global_out") == "output"


@pytest.mark.parametrize("kind", NAMES)
def test_exporters_get_a_tuple_of_tensors(kind: str) -> None:
    network, inputs = output_network(kind), output_samples(2)
    wrapped, names = exportable(network, (inputs,))
    assert [path_of(name) for name in names] == NAMES[kind]
    returned, expected = wrapped(inputs), named_outputs(network(inputs))
    tensors = [returned] if isinstance(returned, Tensor) else returned
    assert all(torch.equal(*pair) for pair in zip(tensors, expected.values(), strict=True))
    assert not wrapped.training
    assert (wrapped is network) == isinstance(network(inputs), Tensor)
