"""What TensorRT asks of an ONNX file, and that a file with a planted fault is caught."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from dfq_plugins.errors import ArtifactError
from dfq_plugins.quantization.integer_agreement import compare_integers, merged
from dfq_plugins.quantization.onnx_agreement import compare_file
from dfq_plugins.quantization.onnx_quantizers import qdq_quantizers
from dfq_plugins.types import InputSpec, Recipe
from dfq_pytorch_quantization.calibrator import PytorchQuantizationCalibrator
from dfq_pytorch_quantization.options import PytorchQuantizationOptions
from dfq_shared.tensorrt import export
from dfq_shared.tensorrt.export import float_inputs, read_file
from dfq_shared.tensorrt.integers import torch_run, torch_weights
from dfq_shared.tensorrt.markers import active_quantizers
from dfq_shared.tensorrt.qdq_graph import QdqModel
from dfq_shared.tensorrt.rules import RULES, check_rules, residual_additions

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dfq_plugins.quantization.onnx_agreement import OnnxAgreement

    Change = Callable[[Any], None]

SPEC = InputSpec((3, 8, 8), num_classes=5)


class EveryLayer(nn.Module):
    """Each kind of weighted operator of ONNX, a residual addition and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.down = nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.grouped_up = nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2)
        self.tokens = nn.Linear(12, 7)
        self.head = nn.Linear(7, 5)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.stem(inputs).relu()
        narrow = self.down(hidden).relu()
        wide = torch.cat([self.norm(self.up(narrow)) + hidden, self.grouped_up(narrow)], 1)
        return self.head(self.tokens(wide.flatten(2).transpose(1, 2)).mean(1))


def quantized(model: nn.Module, recipe: str, inputs: torch.Tensor, spec: InputSpec = SPEC, **options: Any) -> Any:
    calibrator = PytorchQuantizationCalibrator(PytorchQuantizationOptions(**{"activations": "max", **options}))
    prepared = calibrator.prepare(model.eval(), spec, Recipe.parse(recipe), training=False)
    calibrator.calibrate(prepared, [inputs])
    return calibrator, calibrator.convert(prepared)


@pytest.fixture(scope="module")
def inputs() -> torch.Tensor:
    return torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=["w8a8", "w4a4", "w2a7"])
def exported(
    request: pytest.FixtureRequest, inputs: torch.Tensor, tmp_path_factory: pytest.TempPathFactory
) -> tuple[nn.Module, Path]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = EveryLayer()
    calibrator, converted = quantized(model, request.param, inputs)
    (artifact,) = calibrator.export(converted, SPEC, tmp_path_factory.mktemp("exported"))
    return converted, artifact.path


def initializers(proto: Any) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in proto.graph.initializer}


def store(proto: Any, name: str, value: Any) -> None:
    initializers(proto)[name].CopyFrom(numpy_helper.from_array(np.asarray(value), name))


def node_named(proto: Any, name: str) -> Any:
    return next(node for node in proto.graph.node if node.name == name)


# What is in a sound file


def test_every_pair_is_int8_with_zero_point_zero(exported: tuple[nn.Module, Path]) -> None:
    proto = onnx.load(exported[1])
    stored = initializers(proto)
    pairs = [node for node in proto.graph.node if node.op_type in {"QuantizeLinear", "DequantizeLinear"}]
    assert len(pairs) >= 22  # six weights, five tensors: two layers and a shortcut read one that another reads
    for node in pairs:
        assert stored[node.input[2]].data_type == TensorProto.INT8
        assert not numpy_helper.to_array(stored[node.input[2]]).any()
    assert not any(entry.domain == "dfq" for entry in proto.opset_import)


def test_weights_have_their_scales_along_the_output_channels(exported: tuple[nn.Module, Path]) -> None:
    proto = onnx.load(exported[1])
    found = {
        name: (
            numpy_helper.to_array(initializers(proto)[f"{name}.weight_quantizer.scale"]).size,
            next(
                attribute.i
                for attribute in node_named(proto, f"{name}.weight_quantizer/QuantizeLinear").attribute
                if attribute.name == "axis"
            ),
        )
        for name in ("stem", "down", "up", "grouped_up", "tokens", "head")
    }
    # A grouped transposed convolution shares each scale among its groups: its weight has 6 / 2 channels on axis 1.
    assert found == {
        "stem": (6, 0),
        "down": (8, 0),
        "up": (6, 1),
        "grouped_up": (3, 1),
        "tokens": (7, 0),
        "head": (5, 0),
    }


def test_a_sound_file_breaks_no_rule(exported: tuple[nn.Module, Path]) -> None:
    proto = onnx.load(exported[1])
    assert check_rules(proto) == ()
    assert residual_additions(proto) == (1, 1)


def compared(proto: Any, model: nn.Module, inputs: torch.Tensor) -> OnnxAgreement:
    return compare_file(
        proto, tuple(qdq_quantizers(proto.graph)), torch_weights(model), partial(torch_run, model), inputs
    )


def test_integers_are_torchs_own(exported: tuple[nn.Module, Path], inputs: torch.Tensor) -> None:
    model, path = exported
    agreement = compared(onnx.load(path), model, inputs)
    assert agreement.faults() == ()
    assert sum(part.wrong for part in agreement.tensors) == 0
    assert all(part.equal == part.count for part in agreement.weights)
    assert agreement.expected[0].shape == (8, 5)


# The rules, each broken on purpose


def without_dequantize(proto: Any) -> None:
    node = node_named(proto, "down.input_quantizer/DequantizeLinear")
    node.op_type = "Cast"
    del node.input[1:]
    node.attribute.append(helper.make_attribute("to", TensorProto.FLOAT))


def dangling_quantize(proto: Any) -> None:
    scale, zero = "stem.input_quantizer.scale", "stem.input_quantizer.zero_point"
    proto.graph.node.append(helper.make_node("QuantizeLinear", ["input", scale, zero], ["unread"], name="dangling"))


def computed_scale(proto: Any) -> None:
    node = node_named(proto, "stem.input_quantizer/QuantizeLinear")
    proto.graph.node.insert(0, helper.make_node("Abs", [node.input[1]], ["computed"], name="abs"))
    node.input[1] = "computed"


def uint8_zero_point(proto: Any) -> None:
    store(proto, "stem.input_quantizer.zero_point", np.uint8(0))


def no_zero_point(proto: Any) -> None:
    del node_named(proto, "stem.input_quantizer/QuantizeLinear").input[2:]


def computed_weight(proto: Any) -> None:
    node = node_named(proto, "stem.weight_quantizer/QuantizeLinear")
    proto.graph.node.insert(0, helper.make_node("Neg", [node.input[0]], ["negated"], name="negated"))
    node.input[0] = "negated"


def float_input(proto: Any) -> None:
    index = {output: node for node in proto.graph.node for output in node.output}
    layer = next(node for node in proto.graph.node if node.op_type == "Conv")
    layer.input[0] = index[index[layer.input[0]].input[0]].input[0]


def wrong_axis(layer: str, axis: int) -> Change:
    def change(proto: Any) -> None:
        for kind in ("QuantizeLinear", "DequantizeLinear"):
            node = node_named(proto, f"{layer}.weight_quantizer/{kind}")
            next(attribute for attribute in node.attribute if attribute.name == "axis").i = axis

    return change


def channel_scales_of_an_activation(proto: Any) -> None:
    store(proto, "down.input_quantizer.scale", np.full(6, 0.1, np.float32))
    store(proto, "down.input_quantizer.zero_point", np.zeros(6, np.int8))


def two_scales_in_a_concatenation(proto: Any) -> None:
    concat = next(node for node in proto.graph.node if node.op_type == "Concat")
    for index, scale in enumerate((0.1, 0.2)):
        names = [f"joined{index}.{part}" for part in ("scale", "zero", "integers", "values")]
        proto.graph.initializer.append(numpy_helper.from_array(np.float32(scale), names[0]))
        proto.graph.initializer.append(numpy_helper.from_array(np.int8(0), names[1]))
        place = list(proto.graph.node).index(concat)
        tensor, concat.input[index] = concat.input[index], names[3]
        quantize = helper.make_node("QuantizeLinear", [tensor, *names[:2]], [names[2]], name=f"q{index}")
        dequantize = helper.make_node("DequantizeLinear", [names[2], *names[:2]], [names[3]], name=f"dq{index}")
        proto.graph.node.insert(place, dequantize)
        proto.graph.node.insert(place, quantize)


PLANTED: list[tuple[str, str, Change]] = [
    ("pairs", "which is not a DequantizeLinear", without_dequantize),
    ("pairs", "nothing reads its integers", dangling_quantize),
    ("scales", "is computed; it must be constant", computed_scale),
    ("scales", "scales must be positive", lambda proto: store(proto, "stem.input_quantizer.scale", np.float32(-0.1))),
    ("scales", "scales must be positive", lambda proto: store(proto, "stem.input_quantizer.scale", np.float32(np.nan))),
    ("zero points", "is uint8; int8 is needed", uint8_zero_point),
    ("zero points", "has no zero point, so it writes uint8", no_zero_point),
    ("zero points", "is 3; 0 is needed", lambda proto: store(proto, "stem.input_quantizer.zero_point", np.int8(3))),
    ("weighted inputs", "arrives in float, its weight in int8", float_input),
    ("weights", "is computed before", computed_weight),
    ("channel axes", "Conv has its output channels on axis 0", wrong_axis("stem", 1)),
    ("channel axes", "ConvTranspose has its output channels on axis 1", wrong_axis("up", 0)),
    ("channel axes", "ConvTranspose has its output channels on axis 1", wrong_axis("grouped_up", 0)),
    ("channel axes", "Gemm has its output channels on axis 0", wrong_axis("head", 1)),
    ("channel axes", "MatMul has its output channels on axis 0", wrong_axis("tokens", 1)),
    ("channel axes", "only weights may have more than one", channel_scales_of_an_activation),
    ("shared scales", "0.1, 0.2; one is needed", two_scales_in_a_concatenation),
]


@pytest.mark.parametrize(("rule", "told", "change"), PLANTED)
def test_a_planted_violation_is_found(exported: tuple[nn.Module, Path], rule: str, told: str, change: Change) -> None:
    proto = onnx.load(exported[1])
    change(proto)
    found = [finding for finding in check_rules(proto) if finding.rule == rule]
    assert found
    assert any(told in finding.detail for finding in found), [str(finding) for finding in found]


def test_each_rule_has_a_planted_violation() -> None:
    assert {rule for rule, _, _ in PLANTED} == set(RULES)


def test_an_old_opset_is_a_finding(exported: tuple[nn.Module, Path]) -> None:
    proto = onnx.load(exported[1])
    proto.opset_import[0].version = 12
    assert str(check_rules(proto)[0]) == (
        "the model: opset 12 does not support one scale per channel; opset 13 or later is needed (opset)"
    )


# Faults that only the comparison with torch finds


def scale_off_by_5_percent(proto: Any) -> None:
    value = numpy_helper.to_array(initializers(proto)["down.input_quantizer.scale"])
    store(proto, "down.input_quantizer.scale", value * np.float32(1.05))


def one_channel_off_by_one_step(proto: Any) -> None:
    scale = numpy_helper.to_array(initializers(proto)["up.weight_quantizer.scale"])
    weight = numpy_helper.to_array(initializers(proto)["up.weight_quantizer.levels"]).copy()
    weight[:, 2] -= np.sign(weight[:, 2]) * scale[2]
    store(proto, "up.weight_quantizer.levels", weight)


def bias_of_another_channel(proto: Any) -> None:
    store(proto, "head.bias", np.roll(numpy_helper.to_array(initializers(proto)["head.bias"]), 1))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            scale_off_by_5_percent,
            r"down\.input_quantizer: different scale|integers are off by more than a rounding tie",
        ),
        (one_channel_off_by_one_step, r"up\.weight: "),
        (bias_of_another_channel, "the outputs differ by "),
    ],
)
def test_a_planted_fault_is_told(
    exported: tuple[nn.Module, Path], inputs: torch.Tensor, change: Change, told: str
) -> None:
    model, path = exported
    sound = read_file(path)
    proto = copy.deepcopy(sound.proto)
    change(proto)
    faults = compared(proto, model, inputs).faults()
    assert any(re.search(told, fault) for fault in faults), faults


def test_a_missing_quantizer_is_told(exported: tuple[nn.Module, Path]) -> None:
    model, path = exported
    sound = read_file(path)
    proto = copy.deepcopy(sound.proto)
    float_input(proto)
    assert any(
        told.startswith("'stem.weight_quantizer': the input ") and told.endswith("arrives in float")
        for told in float_inputs(QdqModel(proto, sound.integers), list(active_quantizers(model)))
    )
    fewer = {name: tensors for name, tensors in sound.integers.items() if name != "down.input_quantizer"}
    told = float_inputs(QdqModel(sound.proto, fewer), list(active_quantizers(model)))
    assert told == ["'down.input_quantizer' has no QuantizeLinear"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (scale_off_by_5_percent, r"does not compute what the torch model does: .*down\.input_quantizer"),
        (wrong_axis("up", 0), r"breaks 1 of TensorRT's rules .*ConvTranspose has its output channels on axis 1"),
        (float_input, r"Part of the exported model would run in float: .*'stem\.weight_quantizer': the input"),
    ],
)
def test_a_faulty_file_is_not_handed_over(
    inputs: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Change, told: str
) -> None:
    calibrator, converted = quantized(EveryLayer(), "w8a8", inputs)
    note_integers = export.note_integers

    def spoilt(model: QdqModel) -> None:
        note_integers(model)
        change(model.proto)

    monkeypatch.setattr(export, "note_integers", spoilt)
    monkeypatch.setattr(onnx.checker, "check_model", lambda _model: None)
    with pytest.raises(ArtifactError, match=told):
        calibrator.export(converted, SPEC, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["model_qdq.onnx.rejected"]


# The comparison itself


def test_a_rounding_tie_is_no_fault() -> None:
    part = compare_integers("x", np.array([1, 2]), np.array([1.5001, 1.4999]), lowest=-8, highest=7)
    assert (part.equal, part.wrong, part.largest, part.agrees) == (0, 0, 1, True)


def test_values_beyond_the_levels_are_cut_off() -> None:
    part = compare_integers("x", np.array([7, 0]), np.array([99.0, -3.0]), lowest=0, highest=7)
    assert (part.equal, part.wrong) == (2, 0)


def test_few_wrong_integers_pass_unless_one_channel_has_them_all() -> None:
    levels = np.zeros((4, 100, 25))
    scattered, gathered = np.zeros_like(levels, dtype=np.int8), np.zeros_like(levels, dtype=np.int8)
    scattered[0, :10, 0] = 1
    gathered[0, 3, :10] = 1
    assert compare_integers("x", scattered, levels, lowest=-8, highest=7, channel_axis=1).agrees
    part = compare_integers("x", gathered, levels, lowest=-8, highest=7, channel_axis=1)
    assert (part.wrong, part.worst_channel, part.agrees) == (10, (10, 100), False)


def test_batches_add_up() -> None:
    first = compare_integers("x", np.array([1, 2]), np.array([1.0, 4.0]), lowest=-8, highest=7)
    second = compare_integers("x", np.array([1]), np.array([1.0]), lowest=-8, highest=7)
    assert merged([first, second]) == replace(first, count=3, equal=2)


# Options


def test_the_batch_may_be_fixed(inputs: torch.Tensor, tmp_path: Path) -> None:
    calibrator, converted = quantized(EveryLayer(), "w8a8", inputs, batch_size=3)
    (artifact,) = calibrator.export(converted, SPEC, tmp_path)
    graph = onnx.load(artifact.path).graph
    sizes = [[axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in (*graph.input, *graph.output)]
    assert sizes == [[3, 3, 8, 8], [3, 5]]
    assert artifact.checks[0].detail.endswith("opset 17, a batch of 3")


def test_levels_that_int8_does_not_hold_are_refused(inputs: torch.Tensor, tmp_path: Path) -> None:
    calibrator, converted = quantized(EveryLayer(), "w4a4", inputs)
    converted.get_submodule("down").input_quantizer.num_bits = 8
    with pytest.raises(ArtifactError, match=r"'down\.input_quantizer' has levels 0 to 255\. Use unsigned=auto"):
        calibrator.export(converted, SPEC, tmp_path)
    assert not list(tmp_path.iterdir())
