"""target=finn: what the exported graph looks like to FINN, rule by rule, and what qonnx's own passes make of it."""

from __future__ import annotations

import functools
import importlib.util
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.transformation.batchnorm_to_affine import BatchNormToAffine
from qonnx.transformation.extract_conv_bias import ExtractBiasFromConv
from qonnx.transformation.gemm_to_matmul import GemmToMatMul
from qonnx.transformation.general import ConvertSubToAdd
from qonnx.transformation.infer_datatypes import InferDataTypes
from qonnx.transformation.infer_shapes import InferShapes
from qonnx.transformation.qonnx_to_qcdq import QuantToQCDQ
from qonnx.transformation.quant_constant_folding import FoldTransposeIntoQuantInit
from qonnx.transformation.remove import RemoveIdentityOps
from qonnx.util.cleanup import cleanup_model
from torch import nn

import dfq_plugins
from dfq_brevitas import export
from dfq_brevitas.calibrator import BrevitasCalibrator
from dfq_brevitas.finn.check import CHECK_NAME, check_finn_rules, finn_violations
from dfq_brevitas.finn.form import finn_form
from dfq_brevitas.finn.rules import RULES
from dfq_brevitas.finn.scales import scale_groups
from dfq_brevitas.graph import float_graph
from dfq_brevitas.notices import NOTICES
from dfq_brevitas.options import BrevitasOptions
from dfq_plugins.demo.network import DIGITS_SPEC, digits_network
from dfq_plugins.errors import ArtifactError, ModelError, UsageError
from dfq_plugins.network.fit import fitted_copy
from dfq_plugins.network.tracing.trace import trace
from dfq_plugins.quantization.formats import format_in_words
from dfq_plugins.quantization.notices import silenced
from dfq_plugins.types import InputSpec, Recipe
from finn_networks import (
    CONVERTED,
    Averaged,
    Gated,
    Headless,
    LinearBottleneck,
    OneDimensional,
    Plain,
    Residual,
    trained,
)
from finn_violations import PLANTED, Violations

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import ModuleType

    from dfq_brevitas.framework import GraphModule
    from dfq_plugins.types import Artifact

SPEC = InputSpec((3, 8, 8), mean=(0.5,) * 3, std=(0.25,) * 3, value_range=(0.0, 1.0), num_classes=4)
SAME = 1e-5  # of the largest output: float32 sums in another order
PASSES: tuple[Any, ...] = (
    ExtractBiasFromConv(),
    InferShapes(),
    GemmToMatMul(),
    FoldTransposeIntoQuantInit(),
    InferDataTypes(),
    RemoveIdentityOps(),
    ConvertSubToAdd(),
    BatchNormToAffine(),
    QuantToQCDQ(),
)
"""qonnx's part of FINN's first step, in FINN's order; last QuantToQCDQ, which replaces the Quant nodes."""


def batches(samples: int = 8) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    return [torch.randn(samples, 3, 8, 8, generator=rng).clamp(-2, 2) for _ in range(2)]


def quantized(network: nn.Module, recipe: str = "w4a4", **options: Any) -> GraphModule:
    calibrator = BrevitasCalibrator(BrevitasOptions(**({"target": "finn"} | options)))
    prepared = calibrator.prepare(network, SPEC, Recipe.parse(recipe))
    calibrator.calibrate(prepared, batches())
    return calibrator.convert(prepared)


@functools.cache
def ready(kind: type[nn.Module]) -> GraphModule:
    """Return a network quantized as `target=finn` does by default; an export works on a copy."""
    return quantized(trained(kind))


def exported(model: GraphModule, folder: Path) -> Artifact:
    """Write the QONNX file alone, which is what FINN takes."""
    return export.export_onnx(model, batches()[0][:1], folder, spec=SPEC, with_qcdq=False, target="finn")[0]


def run(model: ModelWrapper, inputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    names = model.graph.input[0].name, model.graph.output[0].name
    return np.concatenate([execute_onnx(model, {names[0]: sample[np.newaxis]})[names[1]] for sample in inputs])


def computation(model: ModelWrapper) -> list[bytes]:
    """Return nodes and constants, without names of shapes and types."""
    return [part.SerializeToString() for part in (*model.graph.node, *model.graph.initializer)]


def require_same_after_passes(path: Path, inputs: np.ndarray[Any, Any], *, each: bool = True) -> None:
    """Run the passes one after another, and compare with the untouched file: after each change, or after the last."""
    expected = run(ModelWrapper(str(path)), inputs)
    model = cleanup_model(ModelWrapper(str(path)))
    for step in PASSES:
        before = computation(model)
        with warnings.catch_warnings():
            # GemmToMatMul names opset 9 as the one it was written for; the outputs are compared here.
            warnings.filterwarnings("ignore", message="The GemmToMatMul transformation only offers explicit support")
            model = model.transform(step).transform(InferShapes())
        if computation(model) == before or not (each or step is PASSES[-1]):
            continue
        difference = np.abs(run(model, inputs) - expected).max()
        assert difference <= SAME * np.abs(expected).max(), f"{type(step).__name__} changes the outputs: {difference}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", CONVERTED, ids=lambda kind: kind.__name__)
def test_networks_keep_to_the_rules_and_survive_the_passes(kind: type[nn.Module], tmp_path: Path) -> None:
    model = ready(kind)
    artifact = exported(model, tmp_path)
    assert [check.name for check in artifact.checks] == [
        "integers compared with torch's",
        "whole file, exact arithmetic",
        CHECK_NAME,
    ]
    assert artifact.checks[2].detail == "passed: " + ", ".join(name for name, _ in RULES)
    inputs = batches()[1][:1]
    require_same_after_passes(artifact.path, inputs.numpy())
    torch.testing.assert_close(
        torch.from_numpy(run(ModelWrapper(str(artifact.path)), inputs.numpy())), model(inputs), atol=1e-4, rtol=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", CONVERTED, ids=lambda kind: kind.__name__)
def test_the_form_of_finn_computes_the_same_in_float(kind: type[nn.Module]) -> None:
    network, inputs = trained(kind), batches()[0]
    with torch.no_grad(), silenced(NOTICES):
        traced = trace(fitted_copy(trained(kind)), SPEC)
        rewritten = finn_form(float_graph(traced, BrevitasOptions(), merge_batch_norm=True), SPEC)
        torch.testing.assert_close(rewritten(inputs), network(inputs), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Residual, Averaged], ids=lambda kind: kind.__name__)
def test_eight_bits_stay_near_the_float_network(kind: type[nn.Module]) -> None:
    network, inputs = trained(kind), batches()[0]
    with torch.no_grad():
        expected = network(inputs)
        error = (quantized(network, "w8a8")(inputs) - expected).square().mean().sqrt() / expected.std()
    assert error < 0.05


def test_relu6_clips_the_float_reference_of_the_bias_correction() -> None:
    class Steep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.relu, self.head = nn.Conv2d(3, 4, 1), nn.ReLU6(), nn.Conv2d(4, 4, 1)
            self.stem.weight.data *= 30

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.head(self.relu(self.stem(inputs)))

    network, inputs = trained(Steep), batches()[0]
    with torch.no_grad():
        expected = network(inputs)
        shift = (quantized(network, "w8a8")(inputs) - expected).mean((0, 2, 3)).abs().max() / expected.std()
    assert shift < 0.005


@pytest.mark.slow
def test_one_quantizer_stands_behind_each_relu_and_an_addition_has_one_scale(good_file: Path) -> None:
    graph = onnx.load(good_file).graph
    made_by = {output: node for node in graph.node for output in node.output}
    readers = {
        name: [reader for reader in graph.node if name in reader.input] for node in graph.node for name in node.output
    }
    relus = [node for node in graph.node if node.op_type == "Relu"]
    assert [[reader.op_type for reader in readers[relu.output[0]]] for relu in relus] == [["Quant"]] * 5
    shared = readers[readers[relus[0].output[0]][0].output[0]]
    assert sorted(node.op_type for node in shared) == ["Add", "Conv"]
    scales = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    joined = [
        [made_by[name] for name in node.input]
        for node in graph.node
        if node.op_type == "Add" and "Relu" in _next(node, readers)
    ]
    pairs = [pair for pair in joined if all(node.op_type == "Quant" and node.input[0] in made_by for node in pair)]
    assert len(pairs) == 2
    assert all(scales[left.input[1]] == scales[right.input[1]] for left, right in pairs)


def _next(node: Any, readers: dict[str, list[Any]]) -> list[str]:
    return [reader.op_type for reader in readers[node.output[0]]]


@pytest.mark.slow
def test_formats_say_what_is_read_at_which_width() -> None:
    calibrator, model = BrevitasCalibrator(), ready(Residual)
    coverage = calibrator.describe(model)
    rows = {(row.name, row.role): (row.kind, format_in_words(row.format)) for row in coverage.quantized}
    assert rows["inputs_quant", "activation"][1] == "int8 per tensor, symmetric"
    assert rows["stem.2", "activation"] == ("QuantReLU", "uint4 per tensor, symmetric")
    assert rows["first_1_quant", "activation"][1] == "int8 per tensor, symmetric"  # only an addition reads it
    assert rows["linear", "weight"][1] == "int4 per channel, symmetric"
    assert ("linear", "input") not in rows  # sums of integers, on a scale of their own
    sums = calibrator.describe(ready(LinearBottleneck)).format_of("add_quant", "activation")
    assert format_in_words(sums) == "int4 per tensor, symmetric"  # the next layer reads it as well


def test_the_input_is_signed_even_where_nothing_negative_arrives() -> None:
    gray = InputSpec((3, 8, 8), value_range=(0.0, 1.0))
    calibrator = BrevitasCalibrator(BrevitasOptions(target="finn"))
    prepared = calibrator.prepare(trained(Plain), gray, Recipe(4, 4))
    calibrator.calibrate(prepared, [batch.abs() / 2 for batch in batches()])
    first = calibrator.describe(calibrator.convert(prepared)).quantized[0]
    assert format_in_words(first.format) == "int8 per tensor, symmetric"
    scale = prepared.get_submodule(first.name).act_quant.scale()
    torch.testing.assert_close(scale, torch.tensor(1 / 127))


@pytest.mark.slow
def test_training_keeps_the_scales_equal(tmp_path: Path) -> None:
    calibrator = BrevitasCalibrator(BrevitasOptions(target="finn"))
    prepared = calibrator.prepare(trained(Residual), SPEC, Recipe(4, 4), training=True)
    calibrator.calibrate(prepared, batches())
    optimizer = torch.optim.SGD(prepared.parameters(), lr=1e-2)
    prepared.train()
    for inputs in batches():
        prepared(inputs).square().mean().backward()
        optimizer.step()
    groups = scale_groups(prepared)
    assert [len(group) for group in groups] == [2, 2, 2]
    for group in groups:
        assert len({prepared.get_submodule(name).act_quant.scale().item() for name in group}) == 1
    assert exported(calibrator.convert(prepared), tmp_path).checks[2].name == CHECK_NAME


@pytest.mark.slow
def test_power_of_two_scales(tmp_path: Path) -> None:
    artifact = exported(quantized(trained(Residual), power_of_two_scales=True), tmp_path)
    graph = onnx.load(artifact.path).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Quant":
            exponents = np.log2(constants[node.input[1]])  # those of biases too: an average of 4 x 4 divides by 16
            assert np.all(exponents == np.round(exponents)), node.name


@pytest.mark.slow
def test_zero_points_of_biases_have_a_rank_for_every_target(tmp_path: Path) -> None:
    model = quantized(trained(Plain), target="generic")
    assert exported(quantized(trained(Plain), quantize_bias=True), tmp_path).checks[2].name == CHECK_NAME
    path = export.export_onnx(model, batches()[0][:1], tmp_path, spec=SPEC, with_qcdq=False)[0].path
    wrapped, inputs = ModelWrapper(str(path)), batches()[1][:1].numpy()
    biases = [
        node for node in wrapped.graph.node if node.op_type == "Quant" and wrapped.get_initializer(node.input[3]) == 32
    ]
    assert [wrapped.get_initializer(node.input[2]).shape for node in biases] == [(1,)] * 3
    np.testing.assert_allclose(run(wrapped.transform(ExtractBiasFromConv()), inputs), run(wrapped, inputs), atol=1e-5)


@pytest.mark.slow
def test_the_demo_network_and_the_report(tmp_path: Path) -> None:
    inputs = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 0.5
    told = dfq_plugins.run_quantization(
        digits_network(),
        inputs,
        calibrator="brevitas",
        recipe="w4a4",
        options={"target": "finn"},
        spec=DIGITS_SPEC,
        output=tmp_path,
    )
    assert [check.name for artifact in told.artifacts for check in artifact.checks] == [
        "integers compared with torch's",
        "whole file, exact arithmetic",
        CHECK_NAME,
        "integers compared with torch's",
        "whole file, exact arithmetic",
        "whole file, ONNX Runtime's defaults on this processor, for information",
    ]
    require_same_after_passes(tmp_path / export.QONNX_FILE, inputs[:1].numpy())


@pytest.fixture(scope="module")
def good_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # With quantized biases, whose quantizers have rules of their own.
    return exported(quantized(trained(Residual), quantize_bias=True), tmp_path_factory.mktemp("finn")).path


def test_every_rule_is_planted() -> None:
    assert {rule for rule, _ in PLANTED} == {name for name, _ in RULES}


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "plant"), PLANTED, ids=lambda value: getattr(value, "__name__", None))
def test_a_planted_violation_is_found(rule: str, plant: Callable[[Violations], str], good_file: Path) -> None:
    model = onnx.load(good_file)
    assert finn_violations(model) == ()
    node = plant(Violations(model))
    found = finn_violations(model)
    assert (rule, node) in {(name, finding.node) for name, finding in found}, found


def test_a_file_that_breaks_a_rule_is_refused_by_rule_and_node(good_file: Path, tmp_path: Path) -> None:
    model = onnx.load(good_file)
    node = Violations(model).signed_relu()
    onnx.save(model, tmp_path / "spoiled.onnx")
    with pytest.raises(ArtifactError, match=f"signs by producer: {node} follows a ReLU and must be unsigned"):
        check_finn_rules(tmp_path / "spoiled.onnx")


def test_the_export_runs_the_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(model: ModelWrapper) -> ModelWrapper:
        Violations(model.model).narrow_relu()
        return model

    monkeypatch.setattr(export, "finn_onnx", spoil)
    with pytest.raises(ArtifactError, match=r"this one breaks 1: signs by producer: Quant_\d+ follows a ReLU"):
        exported(ready(Plain), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.qonnx.onnx.rejected"]


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Gated(), r"gate \(Sigmoid\): FINN turns ReLU and ReLU6 into thresholds.*mul \(mul\): .*leave the gate out"),
        (OneDimensional(), r"conv \(Conv1d\): FINN needs maps with height and width: use .* a kernel of \(k, 1\)"),
        (Headless(nn.Conv2d(8, 8, 3, groups=2)), r"middle \(Conv2d\): FINN's convolutions have one group"),
        (Headless(nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")), r"middle \(Conv2d\)"),
        (Headless(nn.Upsample(scale_factor=2, mode="bilinear")), r"middle \(Upsample\): .* use mode='nearest'"),
        (
            Headless(nn.AdaptiveAvgPool2d(3)),
            r"middle \(AdaptiveAvgPool2d\): .* an output size that divides the map size",
        ),
        (
            Headless(nn.Sequential(nn.ZeroPad2d(1), nn.MaxPool2d(2))),
            r"middle.0 \(pad\): FINN only pads with zeros, in front",
        ),
        (Headless(nn.Hardswish()), r"middle \(Hardswish\): FINN turns ReLU"),
        (Headless(nn.GroupNorm(2, 8)), r"middle \(GroupNorm\): Replace it in the float network and train that"),
    ],
    ids=lambda value: value.middle.__class__.__name__ if isinstance(value, Headless) else None,
)
def test_what_finn_has_no_hardware_for_is_named(network: nn.Module, message: str) -> None:
    with pytest.raises(
        ModelError, match="With target=finn, a network must contain only operations that FINN"
    ) as caught:
        quantized(network.eval())
    caught.match(message)


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ("w4a32", {}, "target=finn needs quantized activations, .* got w4a32. Choose e.g. w4a4"),
        ("w1a4", {}, "needs quantized weights in the first and the last layer too, got w1a4"),
        ("w4a4", {"addition_bits": 16}, "at most 8 bits, .* got addition_bits=16. Choose 8"),
    ],
)
def test_recipes_and_options_that_contradict_finn(recipe: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        quantized(trained(Plain), recipe, **options)


def test_binary_weights(tmp_path: Path) -> None:
    artifact = exported(quantized(trained(Plain), "w1a4", first_and_last="quantized"), tmp_path)
    assert {node.op_type for node in onnx.load(artifact.path).graph.node} >= {"BipolarQuant", "Quant"}


REAL = {
    "resnet20_cifar10": ("w4a4", "cifar10_test", 256, 88.0),
    "dscnn_kws_mlperftiny": ("w8a8", "kws_test1000", 256, 88.0),
    "mobilenetv1_075_imagenet": ("w8a8", "imagenet_sample1000_224", 32, 75.0),
}
"""Recipe, split, how many of its first samples calibrate, and the least accuracy on its last 100."""


@pytest.fixture(scope="module")
def networks(shared_data: Path) -> ModuleType:
    description = importlib.util.spec_from_file_location("networks_for_finn", shared_data / "networks.py")
    assert description is not None
    assert description.loader is not None
    module = importlib.util.module_from_spec(description)
    description.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", REAL)
def test_real_networks(name: str, networks: ModuleType, tmp_path: Path) -> None:
    recipe, split, samples, least = REAL[name]
    inputs, labels = networks.load_split(split, name)
    spec = InputSpec(tuple(inputs.shape[1:]))
    calibrator = BrevitasCalibrator(BrevitasOptions(target="finn", correction_strength=1.0))
    prepared = calibrator.prepare(networks.build(name), spec, Recipe.parse(recipe))
    calibrator.calibrate(prepared, inputs[:samples].split(32))
    model = calibrator.convert(prepared)
    with torch.no_grad():
        right = torch.cat([model(part).argmax(1) for part in inputs[-100:].split(50)]) == labels[-100:]
    assert 100 * right.float().mean().item() >= least
    artifact = export.export_onnx(model, inputs[:2], tmp_path, spec=SPEC, with_qcdq=False, target="finn")[0]
    assert artifact.checks[2].name == CHECK_NAME
    require_same_after_passes(artifact.path, inputs[:1].numpy(), each=False)
