"""Reconstruction in the frameworks: what it learns, where it stores it, and how it resumes."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from dfq_plugins.errors import DataError, DfqWarning, UsageError
from dfq_plugins.host.registry import get_registry
from dfq_plugins.model_state import frozen_copy, preserve_global_state
from dfq_plugins.quantization.finetune import finetune
from dfq_plugins.quantization.run import run_quantization
from dfq_plugins.reconstruction.blocks import find_blocks
from dfq_plugins.reconstruction.graph import GraphRunner, flat_graph
from dfq_plugins.reconstruction.options import ReconstructionOptions
from dfq_plugins.reconstruction.run import reconstruct
from dfq_plugins.types import InputSpec, Recipe
from output_networks import output_network, output_samples, output_spec
from snapshot import Snapshot

if TYPE_CHECKING:
    from pathlib import Path

    from dfq_plugins.types import ProgressEvent

FRAMEWORKS = ("pytorch-quantization", "brevitas")
FEW = {"steps": 6, "batch_size": 16}


@pytest.fixture
def inputs() -> torch.Tensor:
    return torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(3)).clamp(-2, 2)


def calibrated(name: str, model: nn.Module, spec: InputSpec, inputs: torch.Tensor, recipe: str = "w3a3") -> Any:
    """Return the framework, the calibrated network and a copy from before."""
    framework = get_registry().create("calibrator", name)
    prepared = framework.prepare(frozen_copy(model), spec, Recipe.parse(recipe), training=False)
    reference = copy.deepcopy(prepared)
    with torch.no_grad():
        framework.calibrate(prepared, [inputs])
    return framework, prepared, reference


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_it_learns_what_calibration_cannot(
    name: str, tiny_network: nn.Module, tiny_spec: InputSpec, inputs: torch.Tensor
) -> None:
    """Fewer errors in every block; and the stored weights are exactly the learned integers."""
    with preserve_global_state():
        framework, prepared, reference = calibrated(name, tiny_network, tiny_spec, inputs)
        options = ReconstructionOptions(steps=60, batch_size=16)
        blocks = reconstruct(framework, prepared, reference, inputs, tiny_spec, options)
    assert [block.name for block in blocks] == ["stem", "conv", "linear"]
    assert all(block.error < block.error_before for block in blocks)
    assert blocks[0].error < 0.9 * blocks[0].error_before
    for layer in framework.quantized_view(prepared).layers:
        if layer.weight is not None:
            integers = layer.module.weight / layer.weight.scale()
            assert (integers - integers.round()).abs().max() < 1e-4
            assert int(integers.round().abs().max()) <= layer.weight.highest + 1
            seen: list[torch.Tensor] = []
            with layer.weight.replaced(lambda values, seen=seen: (seen.append(values), (values, torch.ones(())))[1]):
                pass
            nearest = integers.round().clamp(layer.weight.lowest, layer.weight.highest) * layer.weight.scale()
            assert torch.allclose(nearest, layer.module.weight, atol=1e-6)


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_killed_run_resumes_with_the_same_bytes(
    name: str, tiny_network: nn.Module, tiny_spec: InputSpec, inputs: torch.Tensor, tmp_path: Path
) -> None:
    before = Snapshot(tiny_network)

    def run(folder: str, *listeners: Any, data: torch.Tensor = inputs) -> Any:
        return run_quantization(
            tiny_network,
            data,
            calibrator=name,
            recipe="w3a3",
            spec=tiny_spec,
            reconstruct=FEW,
            work=tmp_path / folder,
            listeners=listeners,
        )

    def kill(event: ProgressEvent) -> None:
        if event.stage == "reconstruct" and event.completed == 2 and event.metrics:
            raise KeyboardInterrupt

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("killed", kill)
    events: list[ProgressEvent] = []
    resumed = run("killed", events.append)
    assert [block.steps for block in resumed.reconstruction] == [0, 0, 6]
    expected, found = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    finished = [event for event in events if event.stage == "reconstruct" and event.metrics]
    assert [set(event.metrics) for event in finished] == [{"error_before", "error", "seconds", "megabytes"}] * 3
    before.assert_unchanged()
    with pytest.raises(DataError, match="holds blocks of another run"):
        run("killed", data=inputs[:40])
    (tmp_path / "killed" / "reconstruct" / "block-0000.safetensors").write_bytes(b"damaged")
    with pytest.raises(DataError, match="is damaged"):
        run("killed")


class Functional(nn.Module):
    """No BatchNorm, a module that is called twice, a shared weight, two branches, and additions as functions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.twin, self.side = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.twin.weight = self.body.weight
        self.head = nn.Linear(8, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = functional.relu(self.stem(inputs))
        hidden = functional.relu(torch.add(self.body(self.body(hidden)), self.side(hidden)))
        hidden = functional.relu(self.twin(hidden))
        return self.head(hidden.mean((2, 3)))


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_shared_layers_and_functions(name: str, tiny_spec: InputSpec, inputs: torch.Tensor) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Functional()
    run = run_quantization(network, inputs, calibrator=name, recipe="w3a3", spec=tiny_spec, reconstruct=FEW)
    assert all(block.error <= block.error_before for block in run.reconstruction)
    if name == "pytorch-quantization":  # Brevitas's graph has a layer for each call
        assert run.model.twin.weight is run.model.body.weight


@pytest.mark.parametrize("name", FRAMEWORKS)
@pytest.mark.parametrize("kind", ["segmentation", "nested"])
def test_several_outputs(name: str, kind: str) -> None:
    run = run_quantization(
        output_network(kind), output_samples(24), calibrator=name, recipe="w3a3", spec=output_spec(), reconstruct=FEW
    )
    assert all(block.error <= block.error_before for block in run.reconstruction)


def test_training_follows(tiny_network: nn.Module, tiny_spec: InputSpec, inputs: torch.Tensor) -> None:
    settings = {"steps": 4, "num_evaluations": 2, "batch_size": 16, "teacher_precision": "float32"}
    run = finetune(
        tiny_network,
        inputs,
        calibrator="brevitas",
        recipe="w3a3",
        spec=tiny_spec,
        reconstruct=FEW,
        training=settings,
    )
    assert [block.steps for block in run.reconstruction] == [6, 6, 6]
    assert run.history[-1].step == 4


def test_frameworks_that_cannot(tiny_network: nn.Module, tiny_spec: InputSpec, inputs: torch.Tensor) -> None:
    def run(name: str, **settings: Any) -> None:
        run_quantization(tiny_network, inputs, calibrator=name, spec=tiny_spec, reconstruct=True, **settings)

    with pytest.raises(UsageError, match=r"cannot reconstruct.*pytorch-quantization, modelopt or brevitas"):
        run("torch-ao")
    with pytest.raises(UsageError, match="only two values"):
        run("brevitas", recipe="binary")
    with pytest.raises(UsageError, match="learned_weight_scales=true"):
        finetune(
            tiny_network,
            inputs,
            calibrator="brevitas",
            spec=tiny_spec,
            reconstruct=True,
            options={"learned_weight_scales": False},
        )
    with pytest.raises(UsageError, match="training_weights=fixed"):
        finetune(
            tiny_network,
            inputs,
            calibrator="pytorch-quantization",
            spec=tiny_spec,
            reconstruct=True,
            options={"training_weights": "follow"},
        )


def test_few_steps_do_no_harm(tiny_network: nn.Module, tiny_spec: InputSpec, inputs: torch.Tensor) -> None:
    """One step of a high rate destroys the weights; the calibrated block is kept then."""
    with preserve_global_state():
        framework, prepared, reference = calibrated("pytorch-quantization", tiny_network, tiny_spec, inputs)
        state = {name: value.clone() for name, value in prepared.state_dict().items()}
        options = ReconstructionOptions(steps=1, rounding_rate=50.0)
        blocks = reconstruct(framework, prepared, reference, inputs, tiny_spec, options)
    assert [block.error for block in blocks] == pytest.approx([block.error_before for block in blocks], rel=1e-3)
    assert all(torch.allclose(value, state[name], rtol=1e-6) for name, value in prepared.state_dict().items())


def test_memory_and_time_are_limited(tiny_network: nn.Module, tiny_spec: InputSpec, inputs: torch.Tensor) -> None:
    with preserve_global_state():
        framework, prepared, reference = calibrated("pytorch-quantization", tiny_network, tiny_spec, inputs)
        options = ReconstructionOptions(steps=1000, max_seconds=0.1, max_megabytes=0.05)
        with pytest.warns(DfqWarning, match="learns from 6 of the 48 samples"):
            blocks = reconstruct(framework, prepared, reference, inputs, tiny_spec, options)
    assert max(block.steps for block in blocks) < 100
    assert max(block.megabytes for block in blocks) <= 0.06


def blocks_of(network: nn.Module, spec: InputSpec, inputs: torch.Tensor, name: str) -> list[str]:
    with preserve_global_state(), torch.no_grad():
        framework, prepared, _ = calibrated(name, network, spec, inputs)
        view = framework.quantized_view(prepared)
        runner = GraphRunner(flat_graph(prepared, view, spec), view, [inputs[:3]])
        return [block.name for block in find_blocks(runner, view.layers)]


class Chain(nn.Module):
    """An inverted bottleneck without an addition, between a stem and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.expand = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 16, 1)
        self.depthwise, self.project = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 4, 1)
        self.head = nn.Linear(4, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = functional.relu(self.depthwise(functional.relu(self.expand(functional.relu(self.stem(inputs))))))
        return self.head(self.project(hidden).mean((2, 3)))


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_expansions_are_one_block(name: str, tiny_spec: InputSpec, inputs: torch.Tensor) -> None:
    assert blocks_of(Chain(), tiny_spec, inputs, name) == ["stem", "expand to project", "head"]
