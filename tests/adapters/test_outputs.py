"""Networks that return anything, through every framework: quantized, compared, exported, loaded, trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

import dfq_plugins as dfq
from dfq_plugins.network.outputs import named_outputs
from output_networks import CLASSES, NAMES, output_network, output_samples, output_spec

if TYPE_CHECKING:
    from pathlib import Path

FRAMEWORKS = ["torch-ao", "pytorch-quantization", "brevitas", "onnxruntime"]
QUICKEST = ("squeezed", "segmentation", "constants")
KINDS = [pytest.param(kind, marks=[] if kind in QUICKEST else pytest.mark.slow) for kind in NAMES]


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_output_is_quantized_exported_and_loaded(framework: str, kind: str, tmp_path: Path) -> None:
    classes = CLASSES if kind == "segmentation" else 0
    samples = output_samples(32)
    run = dfq.run_quantization(
        output_network(kind), samples, calibrator=framework, spec=output_spec(classes), output=tmp_path
    )
    assert not run.rejected, run.rejected
    trained = [name for name in NAMES[kind] if (kind, name) != ("integers", "1")]
    assert [output.name for output in run.output_agreement] == trained
    assert all(output.decibels > 15 for output in run.output_agreement), run.output_agreement
    assert (run.agreement > 0.8) == (kind == "segmentation")
    with torch.no_grad():
        expected = named_outputs(run.model(samples[:3]))
        for artifact in run.artifacts:
            found = named_outputs(dfq.load_quantized(artifact.path)(samples[:3]))
            assert [*found] == [*expected] == NAMES[kind]
            for name, output in expected.items():
                worst = (found[name].float() - output.float()).abs().max()
                assert worst <= 0.05 * output.float().abs().max() + 1e-6, (artifact.path.name, name)
            if len(expected) > 1:
                assert any(f"{name}: 16 samples" in check.detail for check in artifact.checks for name in expected) or (
                    "output_0: 16 samples" in str(artifact.checks)
                )


HARSH = {"torch-ao": ("w4a4", 0.002), "pytorch-quantization": ("w4a4", 0.002), "brevitas": ("w2a8", 0.0005)}
"""Recipe and learning rate at which calibration leaves something to learn. Brevitas corrects biases first."""

TRAINED = [(framework, kind) for framework in HARSH for kind in ("single", "squeezed", "segmentation", "nested")]
TRAINED += [(framework, kind) for framework in list(HARSH)[:2] for kind in ("record", "training-only")]


# The recipes are so harsh that the outputs stay far from float; training brings them nearer.
@pytest.mark.filterwarnings("ignore:The network that .* quantized does not follow:dfq_plugins.errors.DfqWarning")
@pytest.mark.parametrize(
    ("framework", "kind"),
    [pytest.param(*pair, marks=[] if pair[1] in {"single", "training-only"} else pytest.mark.slow) for pair in TRAINED],
)
def test_every_output_is_trained(framework: str, kind: str) -> None:
    recipe, rate = HARSH[framework]
    settings = {"steps": 100, "batch_size": 32, "num_evaluations": 4, "padding": 0, "validation_fraction": 0.3}
    run = dfq.finetune(
        output_network(kind),
        output_samples(192),
        calibrator=framework,
        recipe=recipe,
        spec=output_spec(CLASSES if kind == "segmentation" else 0),
        training={**settings, "learning_rate": rate},
    )
    losses = [point.held_out_loss for point in run.history]
    assert min(losses) < 0.95 * losses[0]
    assert [output.name for output in run.output_agreement] == NAMES[kind]
    assert [output.name for output in run.output_agreement_before] == NAMES[kind]
