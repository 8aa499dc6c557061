"""Networks with any input: from the network to a data set on disk, to each framework's model, to loaded files."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

import dfq_plugins as dfq
from dfq_plugins.errors import ModelError, UsageError
from dfq_plugins.inputs import leaves
from dfq_plugins.quantization.onnx_runtime import exact_session
from dfq_plugins.types import NetworkSpec
from networks_by_input import KINDS, Example, example

if TYPE_CHECKING:
    from pathlib import Path

    from dfq_plugins.data.dataset import SyntheticDataset

FRAMEWORKS = ("torch-ao", "pytorch-quantization", "brevitas", "onnxruntime")
QUICK = {"iterations": 4, "compile": "never"}
# Four iterations leave most values at the edge of their range.
pytestmark = pytest.mark.filterwarnings("ignore::dfq_plugins.network.normalization.NormalizationWarning")


IN_EVERY_RUN = ("image and metadata", "one dictionary", "optional arguments", "sequence")
"""The other kinds take the same way and are slow together."""


@pytest.fixture(
    scope="module",
    params=[pytest.param(kind, marks=() if kind in IN_EVERY_RUN else pytest.mark.slow) for kind in KINDS],
)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Example, SyntheticDataset]:
    found = example(request.param)
    folder = tmp_path_factory.mktemp("set")
    dfq.synthesize(found.network, found.spec, num_samples=40, options=QUICK, output=folder)
    return found, dfq.SyntheticDataset.open(folder)


def test_a_set_comes_back_from_disk(made: tuple[Example, SyntheticDataset]) -> None:
    found, data = made
    assert data.spec.shape == found.spec.shape
    assert data.spec.num_classes == 5
    assert len(data) == 40
    inputs = data.inputs()
    data.spec.check_batch(inputs)
    expected = found.outputs(found.network, inputs)
    logits = torch.cat([batch.outputs["output"] for batch in data.loader(16) if batch.outputs is not None])
    assert torch.allclose(logits, expected, atol=1e-4)
    data.forward_loop(found.network)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_every_framework_quantizes_and_exports(
    framework: str, made: tuple[Example, SyntheticDataset], tmp_path: Path
) -> None:
    found, data = made
    before = copy.deepcopy(found.network.state_dict())
    run = dfq.run_quantization(found.network, data, calibrator=framework, output=tmp_path)
    assert not run.rejected
    inputs = data.inputs(8)
    expected, quantized = found.outputs(found.network, inputs), found.outputs(run.model, inputs)
    assert (quantized - expected).abs().mean() < 0.1 * expected.std()
    for artifact in run.artifacts:
        loaded = found.outputs(dfq.load_quantized(artifact.path), inputs)
        assert torch.allclose(loaded, quantized, atol=1e-4), artifact.path.name
    assert all(torch.equal(before[name], value) for name, value in found.network.state_dict().items())


@pytest.mark.parametrize(("framework", "file"), [("pytorch-quantization", "model_qdq"), ("brevitas", "model.qcdq")])
def test_onnx_files_name_their_inputs_as_the_specification_does(framework: str, file: str, tmp_path: Path) -> None:
    found = example("one dictionary")
    data = [found.random(16)]
    run = dfq.run_quantization(found.network, data, calibrator=framework, spec=found.spec, output=tmp_path)
    session = exact_session(tmp_path / f"{file}.onnx")
    assert [value.name for value in session.get_inputs()] == ["image", "meta"]
    inputs = found.random(3, seed=1)
    (outputs,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    assert torch.allclose(torch.from_numpy(outputs), found.outputs(run.model, inputs), atol=1e-4)


def test_the_framework_s_model_takes_its_inputs_as_the_network_does() -> None:
    found = example("one dictionary")
    run = dfq.run_quantization(found.network, [found.random(16)], calibrator="torch-ao", spec=found.spec)
    inputs = found.random(2)
    assert torch.equal(run.model(inputs), copy.deepcopy(run.model)(inputs))


@pytest.mark.parametrize("framework", FRAMEWORKS[:3])
@pytest.mark.parametrize("kind", ["one dictionary", "two images"])
def test_fine_tuning_takes_several_inputs(framework: str, kind: str) -> None:
    found = example(kind)
    training = {"steps": 2, "batch_size": 8, "flip": True, "mixup": 0.2, "num_evaluations": 1}
    data = [found.random(16)]
    run = dfq.finetune(found.network, data, calibrator=framework, spec=found.spec, training=training)
    assert run.history[-1].step == 2


def test_distilling_and_sparsifying_take_several_inputs() -> None:
    found = example("any positional")
    training = {"steps": 2, "batch_size": 8, "num_evaluations": 1}
    data = [found.random(16)]
    assert dfq.distill(found.network, found.network, data, spec=found.spec, training=training).agreement == 1
    assert dfq.prune(found.network, data, sparsity=0.2, spec=found.spec, training=training).method == "weights"
    with pytest.raises(UsageError, match=r"networks with one input, but this specification has image, meta\. Set"):
        dfq.prune(found.network, data, macs=0.7, spec=found.spec, training=training)


@pytest.mark.parametrize("framework", ["pytorch-quantization", "brevitas"])
def test_sizes_can_be_left_open(framework: str, tmp_path: Path) -> None:
    found = example("two images")
    options = {"dynamic_sizes": True}
    run = dfq.run_quantization(
        found.network, [found.random(16)], calibrator=framework, spec=found.spec, options=options, output=tmp_path
    )
    assert not run.rejected
    assert run.artifacts[-1].checks[-1].name == "other sizes"
    larger = {"left": torch.rand(2, 3, 30, 18), "right": torch.rand(2, 1, 30, 18)}
    loaded = dfq.load_quantized(run.artifacts[-1].path)
    assert torch.allclose(found.outputs(loaded, larger), found.outputs(run.model, larger), atol=1e-3)


@pytest.mark.parametrize("framework", ["pytorch-quantization", "brevitas"])
@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("table", UsageError, r"opens the spatial axes of the inputs, and there are none\. Leave it out"),
        ("fixed", ModelError, r"takes inputs of any size, but Sequential does not take \(1, 40, 24\).*Leave it out"),
    ],
)
def test_open_sizes_are_refused_before_any_work(
    framework: str, kind: str, error: type[Exception], message: str
) -> None:
    found = example("rectangle" if kind == "fixed" else kind)
    network: Any = found.network
    if kind == "fixed":
        network = torch.nn.Sequential(network[0], torch.nn.Flatten(), torch.nn.Linear(8 * 9 * 5, 5)).eval()
    with pytest.raises(error, match=message):
        dfq.quantize(network, found.random(16), calibrator=framework, spec=found.spec, options={"dynamic_sizes": True})


def test_calibration_data_comes_in_any_form() -> None:
    found = example("image and metadata")
    inputs = found.random(16)
    image, meta = leaves(inputs)
    targets = torch.zeros(16)
    forms: list[Any] = [
        inputs,
        [inputs],
        [(image, meta)],
        [(image, meta, targets)],
        [(inputs, targets)],
        [{**inputs, "labels": targets}],
        [dfq.Batch(inputs)],
    ]
    models = [dfq.quantize(found.network, data, calibrator="torch-ao", spec=found.spec) for data in forms]
    outputs = [found.outputs(model, inputs) for model in models]
    assert all(torch.equal(outputs[0], other) for other in outputs)


def test_the_shapes_of_named_data_need_no_specification() -> None:
    found = example("image and metadata")
    run = dfq.run_quantization(found.network, [found.random(16)], calibrator="torch-ao")
    assert (run.output_agreement[0].same_largest or 0) > 0.5


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([{"image": torch.rand(4, 3, 12, 12)}], "must hold the inputs image, meta.* got a dictionary of image"),
        ([torch.rand(4, 3, 12, 12)], "must hold the inputs image, meta.*in this order, got a Tensor"),
        ([(torch.rand(4, 3, 12, 12),)], "must hold the inputs image, meta"),
    ],
)
def test_incomplete_data_is_refused(data: Any, message: str) -> None:
    found = example("image and metadata")
    with pytest.raises(UsageError, match=message):
        dfq.quantize(found.network, data, calibrator="torch-ao", spec=found.spec)


def test_finn_takes_one_input() -> None:
    found = example("image and metadata")
    with pytest.raises(UsageError, match=r"target=finn takes networks with one input, but .* image, meta\. Use the"):
        dfq.quantize(
            found.network, [found.random(8)], calibrator="brevitas", spec=found.spec, options={"target": "finn"}
        )


def test_a_mapping_may_name_the_only_input() -> None:
    found = example("optional arguments")
    (image,) = found.spec.named.values()
    run = dfq.run_quantization(
        found.network,
        [{"x": found.random(16)}],
        calibrator="brevitas",
        spec=NetworkSpec({"x": replace(image, num_classes=None)}, num_classes=5),
    )
    assert run.agreement > 0.5
