"""Networks that people bring: each is exported for TensorRT, and its file computes torch's own integers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

from dfq_plugins.errors import ModelError
from dfq_plugins.quantization.notices import silenced
from dfq_plugins.quantization.onnx_runtime import exact_session, run_session
from dfq_plugins.types import InputSpec, Recipe
from dfq_pytorch_quantization.backend import GuardedHistogram
from dfq_pytorch_quantization.calibrator import PytorchQuantizationCalibrator
from dfq_pytorch_quantization.framework import calib, quant_modules, quant_nn, without_cuda
from dfq_pytorch_quantization.notices import LOGGER, NOTICES
from dfq_pytorch_quantization.options import PytorchQuantizationOptions
from dfq_shared.static_pooling import pool_by_matrices
from dfq_shared.tensorrt.residual import ResidualQuantizer
from dfq_shared.tensorrt.rules import residual_additions

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dfq_plugins.types import Artifact


def conv(channels: int, outputs: int, size: int = 3, **arguments: Any) -> nn.Sequential:
    layer = nn.Conv2d(channels, outputs, size, padding=size // 2, bias=False, **arguments)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


class Downsampling(nn.Module):
    """A residual block whose projection and first convolution read one tensor behind a ReLU that is not in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.relu = conv(3, 8), nn.ReLU()
        self.body = nn.Sequential(conv(8, 12, stride=2), nn.ReLU(), conv(12, 12))
        self.project = conv(8, 12, 1, stride=2)
        self.head = nn.Linear(12, 5)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.relu(self.stem(inputs))
        return self.head(self.relu(self.body(hidden) + self.project(hidden)).mean((2, 3)))


class RepVgg(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.large, self.small, self.norm = conv(3, 3), conv(3, 3, 1), nn.BatchNorm2d(3)
        self.second = conv(3, 6, stride=2)
        self.head = nn.Linear(6, 5)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        inputs = functional.relu(self.large(inputs) + self.small(inputs) + self.norm(inputs))
        return self.head(functional.relu(self.second(inputs)).mean((2, 3)))


class PreActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.first, self.second = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.project, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.stem(inputs)
        active = functional.relu(self.norm(hidden))
        hidden = self.second(functional.relu(self.first(active))) + self.project(active)
        return self.head(hidden.mean((2, 3)))


class Branches(nn.Module):
    """Three branches of one tensor, joined again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.branches = nn.ModuleList([conv(8, 4, 1), conv(8, 4), nn.Sequential(nn.AvgPool2d(3, 1, 1), conv(8, 4, 1))])
        self.head = nn.Linear(12, 5)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = functional.relu(self.stem(inputs))
        return self.head(functional.relu(torch.cat([branch(hidden) for branch in self.branches], 1)).mean((2, 3)))


class Attention(nn.Module):
    """Queries, keys and values of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 16, 4, stride=4), nn.LayerNorm(16)
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))
        self.output, self.head = nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(inputs).flatten(2).transpose(1, 2)
        normed = self.norm(tokens)
        query, key, value = (
            layer(normed).unflatten(-1, (2, 8)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        weights = (query @ key.transpose(-1, -2) / 8**0.5).softmax(-1)
        tokens = tokens + self.output((weights @ value).transpose(1, 2).flatten(2))
        return self.head(tokens.mean(1))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.bottom = conv(3, 8), conv(8, 16)
        self.up, self.grouped = nn.ConvTranspose2d(16, 8, 2, stride=2), nn.ConvTranspose2d(16, 8, 4, 2, 1, groups=4)
        self.merge, self.mask = conv(24, 8), nn.Conv2d(8, 2, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        fine = functional.relu(self.down(inputs))
        coarse = functional.relu(self.bottom(functional.max_pool2d(fine, 2)))
        merged = self.merge(torch.cat([self.up(coarse), self.grouped(coarse), fine], 1))
        return self.mask(functional.relu(merged))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pool = conv(3, 8), nn.AdaptiveAvgPool2d(1)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.depthwise, self.point = conv(8, 8, groups=8), conv(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = functional.hardswish(self.stem(inputs))
        scale = functional.hardsigmoid(self.excite(functional.relu(self.squeeze(self.pool(hidden)))))
        hidden = hidden + self.point(functional.hardswish(self.depthwise(hidden * scale)))
        return self.head(hidden.mean((2, 3)))


class Recurrent(nn.Module):
    """One convolution that runs three times."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.step, self.head = conv(3, 6), nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 5)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.stem(inputs)
        for _ in range(3):
            hidden = torch.tanh(self.step(hidden))
        return self.head(hidden.mean((2, 3)))


NETWORKS = [
    Downsampling, RepVgg, PreActivation, Branches, Attention, UNet, SqueezeExcite, Recurrent
]  # fmt: skip


def calibrated(model: nn.Module, shape: tuple[int, ...], recipe: str = "w8a8", **options: Any) -> Any:
    inputs = torch.randn(8, *shape, generator=torch.Generator().manual_seed(0))
    spec = InputSpec(shape, num_classes=5)
    calibrator = PytorchQuantizationCalibrator(PytorchQuantizationOptions(**{"activations": "max", **options}))
    prepared = calibrator.prepare(model.eval(), spec, Recipe.parse(recipe), training=False)
    calibrator.calibrate(prepared, [inputs])
    return calibrator, calibrator.convert(prepared), spec


def export(
    model: nn.Module, shape: tuple[int, ...], folder: Path, recipe: str = "w8a8", **options: Any
) -> tuple[nn.Module, Artifact]:
    calibrator, converted, spec = calibrated(model, shape, recipe, **options)
    (artifact,) = calibrator.export(converted, spec, folder)
    return converted, artifact


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build()


@pytest.mark.parametrize("recipe", ["w8a8", "w4a4"])
@pytest.mark.parametrize("build", NETWORKS)
def test_every_integer_is_torchs(build: type[nn.Module], recipe: str, tmp_path: Path) -> None:
    _, artifact = export(seeded(build), (3, 16, 16), tmp_path, recipe)
    assert [check.name for check in artifact.checks][:2] == ["structure", "TensorRT rules"]
    assert " weights are equal on " in artifact.checks[2].detail


@pytest.mark.parametrize("build", [Downsampling, RepVgg, PreActivation, Branches, Attention])
def test_layers_that_read_one_tensor_share_a_pair(build: type[nn.Module], tmp_path: Path) -> None:
    model, artifact = export(seeded(build), (3, 16, 16), tmp_path, residual_quantizer=False)
    kinds = [node.op_type for node in onnx.load(artifact.path).graph.node]
    quantizers = [module for module in model.modules() if isinstance(module, quant_nn.TensorQuantizer)]
    assert kinds.count("QuantizeLinear") < len(quantizers)


@pytest.mark.slow
@pytest.mark.parametrize("build", [torchvision.models.resnet18, torchvision.models.mobilenet_v3_small])
def test_torchvision(build: Any, tmp_path: Path) -> None:
    model = seeded(build)
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    _, artifact = export(model, (3, 32, 32), tmp_path)
    fused, _, total, *_ = artifact.checks[1].detail.split("; ")[1].split()
    assert fused == total


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "resnext50_32x4d", "wide_resnet50_2", "inception_v3", "vgg11_bn"])
@pytest.mark.parametrize("recipe", ["w8a8", "w4a4"])
def test_large_torchvision(name: str, recipe: str, tmp_path: Path) -> None:
    inception = name == "inception_v3"
    settings = {"aux_logits": False, "init_weights": False} if inception else {}
    model = seeded(lambda: getattr(torchvision.models, name)(**settings))
    _, artifact = export(model, (3, 96, 96) if inception else (3, 64, 64), tmp_path, recipe)
    assert " weights are equal on " in artifact.checks[2].detail


# Adaptive pooling


class Pooling(nn.Module):
    def __init__(self, size: Any, *, module: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.pool = nn.AdaptiveAvgPool2d(size) if module else None
        self.size = size

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.stem(inputs)
        pooled = functional.adaptive_avg_pool2d(hidden, self.size) if self.pool is None else self.pool(hidden)
        return pooled.flatten(1)


@pytest.mark.parametrize("size", [(6, 6), 7, (16, 3), (None, 4), 1])
@pytest.mark.parametrize("module", [True, False])
def test_average_pooling_to_any_size(size: Any, module: bool, tmp_path: Path) -> None:
    model, artifact = export(seeded(lambda: Pooling(size, module=module)), (3, 15, 12), tmp_path)
    inputs = torch.randn(3, 3, 15, 12)
    with torch.no_grad():
        expected = model(inputs).numpy()
    (found,) = run_session(exact_session(artifact.path), {"input": inputs.numpy()})
    assert np.abs(found - expected).mean() < 0.002 * expected.std()


@pytest.mark.parametrize(("shape", "sizes"), [((2, 3, 13), (6,)), ((2, 3, 1, 5), (6, 3)), ((1, 2, 4, 9, 5), (3, 2, 5))])
def test_pooling_by_matrices_is_adaptive_pooling(shape: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    inputs = torch.randn(shape)
    reference = getattr(functional, f"adaptive_avg_pool{len(sizes)}d")(inputs, sizes)
    assert torch.allclose(pool_by_matrices(inputs, sizes), reference, atol=1e-6)


# Residual additions


@pytest.mark.slow
def test_shortcuts_are_quantized_to_8_bits_at_any_recipe(tmp_path: Path) -> None:
    model, artifact = export(seeded(torchvision.models.resnet18), (3, 32, 32), tmp_path, "w4a4")
    names = [name for name, module in model.named_modules() if isinstance(module, ResidualQuantizer)]
    assert names == [f"layer{stage}.{block}.residual_quantizer" for stage in (1, 2, 3, 4) for block in (0, 1)]
    assert {model.get_submodule(f"{name}.input_quantizer").num_bits for name in names} == {8}
    assert residual_additions(onnx.load(artifact.path)) == (8, 8)
    assert artifact.checks[1].detail.endswith("8 of 8 residual additions quantized")


def test_shortcuts_may_stay_in_float(tmp_path: Path) -> None:
    model, artifact = export(seeded(Downsampling), (3, 16, 16), tmp_path, residual_quantizer=False)
    assert not any(isinstance(module, ResidualQuantizer) for module in model.modules())
    assert artifact.checks[1].detail.endswith("0 of 1 residual additions quantized")


def test_the_projection_is_the_shortcut() -> None:
    _, converted, _ = calibrated(seeded(Downsampling), (3, 16, 16))
    (node,) = (node for node in converted.graph.nodes if node.target == "residual_quantizer")
    assert str(node.args[0].target) == "project"


def test_a_rebuilt_block_keeps_its_attributes_and_hooks() -> None:
    model = seeded(Downsampling)
    model.register_forward_hook(lambda _module, _inputs, output: output + 100)
    model.note = "kept"
    _, converted, _ = calibrated(model, (3, 16, 16))
    assert converted.note == "kept"
    assert type(converted).__name__ == "Downsampling"
    inputs = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(converted(inputs), model(inputs), atol=0.2)


class Branching(Downsampling):
    """A forward that cannot be traced."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if inputs.abs().sum() < 0:
            return inputs
        return super().forward(inputs)


class AsksForTheType(Downsampling):
    """A forward that takes another way when it is traced."""

    def forward(self, inputs: Any) -> torch.Tensor:
        outputs = super().forward(inputs)
        return outputs if isinstance(inputs, torch.Tensor) else 2 * outputs


@pytest.mark.parametrize("build", [Branching, AsksForTheType])
def test_a_forward_that_tracing_changes_stays_as_it_is(build: type[nn.Module]) -> None:
    model = seeded(build)
    _, converted, _ = calibrated(model, (3, 16, 16))
    assert type(converted) is build
    assert not any(isinstance(module, ResidualQuantizer) for module in converted.modules())


# Models of the framework's own modules


@pytest.fixture
def patched() -> Any:
    quant_modules.initialize()
    yield
    quant_modules.deactivate()


@pytest.mark.usefixtures("patched")
@pytest.mark.parametrize("activations", ["max", "mse"])
def test_the_recipe_holds_for_a_model_of_the_frameworks_modules(activations: str, tmp_path: Path) -> None:
    model = seeded(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(196, 5))
    )
    assert isinstance(model[0], quant_nn.QuantConv2d)
    converted, _ = export(model, (3, 16, 16), tmp_path, "w4a4", activations=activations)
    assert converted[4].input_quantizer.num_bits == converted[4].weight_quantizer.num_bits == 4
    assert model[0].weight_quantizer.num_bits == 8  # the caller's own


@pytest.mark.usefixtures("patched")
def test_a_calibrated_model_of_the_frameworks_modules_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    model[0].input_quantizer.amax = 2.5
    told = r"'0' \(QuantConv2d\) is already calibrated \(amax 2\.5\).*Build the model without quant_modules\.initialize"
    with pytest.raises(ModelError, match=told):
        calibrated(model, (3, 16, 16))


def test_a_quantizer_of_the_callers_own_is_refused() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.quantizer = nn.Conv2d(3, 3, 1), quant_nn.TensorQuantizer()

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.conv(inputs) + self.quantizer(inputs)

    with pytest.raises(ModelError, match=r"'quantizer' is a quantizer of pytorch-quantization inside Block"):
        calibrated(Block(), (3, 16, 16))


# The search over candidate ranges


@pytest.mark.parametrize(("bits", "unsigned"), [(8, False), (4, True), (2, False)])
def test_the_search_finds_the_frameworks_range(bits: int, unsigned: bool) -> None:
    ours, theirs = GuardedHistogram(bits, None, unsigned), calib.HistogramCalibrator(bits, None, unsigned)
    rng = torch.Generator().manual_seed(bits)
    for scale in (1.0, 1.5):
        batch = (torch.randn(3000, generator=rng) * scale).relu()
        ours.collect(batch)
        theirs.collect(batch)
    with without_cuda(), silenced(NOTICES, logger=LOGGER):
        assert ours.compute_amax("mse", stride=16) == theirs.compute_amax("mse", stride=16)
