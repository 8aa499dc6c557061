"""A network with several inputs and several outputs: from synthesis to loaded files, and through a training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

import dfq_plugins as dfq
from dfq_plugins.network.outputs import named_outputs
from dfq_plugins.types import InputSpec, NetworkSpec
from networks_by_input import features

if TYPE_CHECKING:
    from pathlib import Path

    from dfq_plugins.types import Call

CLASSES, WIDTH = 7, 8
NAMES = ["scores", "heads.0", "heads.1", "image"]
SPECS = {"image": InputSpec((3, 12, 12), value_range=(0, 1)), "meta": InputSpec((4,), value_range=(-2, 2))}


class Both(nn.Module):
    """Takes an image and numbers; returns class logits, a class map and a box, and one output named as an input."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.pool, self.embed = features(3), nn.AdaptiveAvgPool2d(1), nn.Linear(4, WIDTH)
        self.scores, self.box = nn.Linear(WIDTH, CLASSES), nn.Linear(WIDTH, 4)
        self.map, self.back = nn.Conv2d(WIDTH, CLASSES, 1), nn.Conv2d(WIDTH, 3, 1)

    def forward(self, image: Tensor, meta: Tensor, *, scale: float = 1.0) -> dict[str, Any]:
        maps = self.body(image)
        hidden = self.pool(maps).flatten(1) + torch.relu(self.embed(meta))
        heads = (self.map(maps), self.box(hidden) * scale)
        return {"scores": self.scores(hidden), "heads": heads, "image": self.back(maps), "scale": scale}


class FromDictionary(Both):
    """The same in one dictionary."""

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Any]:  # type: ignore[override]
        return super().forward(batch["image"], batch["meta"])


def made(call: Call) -> tuple[nn.Module, NetworkSpec]:
    spec = NetworkSpec(SPECS, num_classes=CLASSES, call=call)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        network = (FromDictionary if call == "dictionary" else Both)().train()
        for _ in range(10):
            spec.run(network, spec.map(lambda one: torch.rand(16, *one.shape)))
    return network.eval(), spec


@pytest.mark.parametrize("call", ["keywords", "dictionary"])
@pytest.mark.parametrize("framework", ["torch-ao", "pytorch-quantization", "brevitas"])
def test_from_synthesis_to_loaded_files(framework: str, call: Call, tmp_path: Path) -> None:
    network, spec = made(call)
    dfq.synthesize(
        network, spec, num_samples=32, options={"iterations": 2, "compile": "never"}, output=tmp_path / "set"
    )
    data = dfq.SyntheticDataset.open(tmp_path / "set")
    assert data.spec == spec
    batch = next(iter(data.loader(32)))
    with torch.no_grad():
        expected = named_outputs(spec.run(network, batch.inputs))
    assert batch.outputs is not None
    assert batch.labels is not None
    assert sorted(batch.outputs) == sorted(NAMES)
    for name, output in expected.items():
        torch.testing.assert_close(batch.outputs[name], output, atol=1e-4, rtol=1e-3)
    run = dfq.run_quantization(network, data, calibrator=framework, output=tmp_path / "files")
    assert not run.rejected
    assert [found.name for found in run.output_agreement] == NAMES
    assert [found.kind for found in run.output_agreement] == ["classes", "class map", "values", "values"]
    assert all(found.decibels > 10 for found in run.output_agreement)
    with torch.no_grad():
        quantized = named_outputs(spec.run(run.model, batch.inputs))
        for artifact in run.artifacts:
            loaded = spec.run(dfq.load_quantized(artifact.path), batch.inputs)
            assert list(loaded) == ["scores", "heads", "image"]
            for name, output in named_outputs(loaded).items():
                assert (output - quantized[name]).abs().mean() < 1e-4, (artifact.path.name, name)  # ties may round


@pytest.mark.parametrize("framework", ["torch-ao", "pytorch-quantization", "brevitas"])
def test_fine_tuning_learns_every_output_from_every_input(framework: str) -> None:
    network, spec = made("keywords")
    inputs = spec.map(lambda one: torch.rand(24, *one.shape))
    seen: list[Any] = []

    def task(outputs: Any, batch: Any) -> Tensor:
        seen.append((set(batch.inputs), len(batch.targets)))
        loss: Tensor = outputs["heads"][1].square().mean()
        return loss

    batches = [(inputs["image"], inputs["meta"], torch.arange(24) % CLASSES)]
    run = dfq.finetune(
        network, batches, calibrator=framework, spec=spec,
        training={"steps": 2, "batch_size": 8, "num_evaluations": 1, "task_loss": task},
    )  # fmt: skip
    assert [found.name for found in run.output_agreement] == NAMES
    assert ({"image", "meta"}, 8) in seen
