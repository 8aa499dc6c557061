"""Several inputs are optimized together; what the statistics do not reach is drawn from its specification, and said."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

import dfq_plugins as dfq
from contract_plugins import Uniform
from dfq_plugins.errors import UsageError
from dfq_plugins.generators.noise import Noise
from dfq_plugins.generators.start import fitted_noise
from dfq_plugins.host.accepted import accepted_spec
from dfq_plugins.inputs import leaves, map_inputs
from dfq_plugins.synthesis.loop import drawn_maps
from dfq_plugins.synthesis.objective import InversionObjective
from dfq_plugins.synthesis.options import InversionOptions
from dfq_plugins.types import InputSpec, NetworkSpec
from networks_by_input import GRAY, IMAGE, Example, example

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore:The normalization looks wrong")  # statistics that no data have

QUICK = {"iterations": 30, "compile": "never"}


def objective(found: Example, **options: Any) -> InversionObjective:
    return InversionObjective(found.network, found.spec, InversionOptions(precision="float32", **options))


def test_every_input_that_batch_norm_sees_is_optimized() -> None:
    found = example("two images")
    start = dfq.synthesize(found.network, found.spec, num_samples=32, generator="gaussian").manifest.divergence
    end = dfq.synthesize(found.network, found.spec, num_samples=32, options=QUICK).manifest.divergence
    assert list(end) == ["input.right", "left.1", "left.4", "right.1", "right.4"]
    assert end["left.1"] < start["left.1"] / 2
    assert end["right.4"] < start["right.4"] / 2


def test_an_input_that_no_batch_norm_sees_is_drawn_and_said(caplog: pytest.LogCaptureFixture) -> None:
    found = example("image and metadata")
    assert objective(found).unseen_inputs() == ("meta",)
    with caplog.at_level(logging.WARNING):
        data = dfq.synthesize(found.network, found.spec, num_samples=256, options={**QUICK, "iterations": 2})
    assert "No BatchNorm layer sees the input 'meta': its samples are drawn from its specification." in caplog.text
    meta = data.inputs()["meta"]
    assert meta.abs().max() <= 2
    assert abs(float(meta.std()) - 1) < 0.1


def test_an_unknown_scale_of_such_an_input_is_said(caplog: pytest.LogCaptureFixture) -> None:
    found = example("image and metadata")
    spec = {"image": IMAGE, "meta": InputSpec((4,))}
    with caplog.at_level(logging.WARNING):
        dfq.synthesize(found.network, spec, num_samples=32, options={**QUICK, "iterations": 2})
    assert "neither mean and std nor a value range" in caplog.text


def test_the_noise_of_each_input_is_fitted_but_not_that_of_unseen_ones() -> None:
    found = example("image and metadata")
    noise = fitted_noise(objective(found), found.spec)
    assert noise["meta"] == Noise(0.0, 1.0)
    assert noise["image"].center == pytest.approx(0.5, abs=0.2)


def test_gradients_have_the_form_of_the_inputs_and_halves_give_the_same() -> None:
    found = example("two images")
    inputs, labels = found.random(6), torch.arange(6) % 5
    step = objective(found, class_weight=0.1)
    loss, gradients, moments = step(inputs, labels, None)
    step._halves = True
    other = step(inputs, labels, None)
    assert list(gradients) == ["left", "right"]
    assert torch.allclose(loss, other[0], rtol=1e-4)
    assert torch.allclose(moments, other[2], atol=1e-5)
    for one, two in zip(leaves(gradients), leaves(other[1]), strict=True):
        assert torch.allclose(one, two, atol=1e-6)


@pytest.mark.slow
def test_a_compiled_step_computes_the_same_for_several_inputs() -> None:
    found = example("one dictionary")
    step, inputs, labels = objective(found), found.random(8), torch.zeros(8, dtype=torch.long)
    plain, gradients, _ = step(inputs, labels, None)
    step.use_compiled(wanted=True)
    loss, others, _ = step(inputs, labels, None)
    assert step.is_compiled
    assert torch.allclose(plain, loss, rtol=1e-4)
    assert all(map_inputs(lambda one, two: torch.allclose(one, two, atol=1e-6), gradients, others).values())


def test_only_spatial_inputs_are_shifted() -> None:
    spec = NetworkSpec({"image": IMAGE, "gray": GRAY, "meta": InputSpec((4,))})
    maps = drawn_maps(
        InversionOptions(jitter=2), spec, spec.map(lambda one: torch.zeros(3, *one.shape)), torch.Generator()
    )
    assert [len(parts) for parts in maps.values()] == [2, 2, 0]


def test_the_same_seed_gives_the_same_samples(tmp_path: Path) -> None:
    found = example("two images")
    for folder in ("a", "b"):
        dfq.synthesize(found.network, found.spec, num_samples=8, options=QUICK, output=tmp_path / folder)
    first, second = ((tmp_path / folder / "shard-00000.safetensors").read_bytes() for folder in ("a", "b"))
    assert first == second


def test_a_plugin_that_takes_one_input_is_not_given_several() -> None:
    found = example("two images")
    with pytest.raises(UsageError, match=r"The generator takes networks with one input, .* has left, right\. Use one"):
        accepted_spec(Uniform(), "generator", found.spec)
    assert accepted_spec(Uniform(), "generator", IMAGE) is IMAGE


@pytest.mark.parametrize("generator", ["gdfq", "record-top"])
def test_generators_for_one_input_refuse_several_before_any_work(generator: str, tmp_path: Path) -> None:
    found = example("two images")
    options = {"record": str(tmp_path)} if generator == "record-top" else {}
    with pytest.raises(UsageError, match="takes networks with one input"):
        dfq.synthesize(found.network, found.spec, generator=generator, options=options, output=tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_records_are_made_of_one_input(tmp_path: Path) -> None:
    found = example("two images")
    with pytest.raises(UsageError, match="Activation records are made of networks with one input"):
        dfq.record(found.network, [found.random(8)], found.spec, output=tmp_path / "record")


def test_a_class_term_reaches_an_input_that_no_batch_norm_sees() -> None:
    found = example("image and metadata")
    inputs = found.random(4)
    step = objective(found, class_weight=1.0)
    _, gradients, _ = step(inputs, torch.zeros(4, dtype=torch.long), None)
    assert gradients["meta"].abs().sum() > 0


class Shared(nn.Module):
    """One convolution for both images."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.classifier = nn.Conv2d(1, 4, 3), nn.Linear(4, 3)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        logits: Tensor = self.classifier((self.convolution(first) - self.convolution(second)).mean((2, 3)))
        return logits


def test_known_ranges_go_to_the_layers_that_read_each_input() -> None:
    from dfq_shared.tensorrt.quantizers import quantized_modules

    wide = InputSpec((1, 8, 8), value_range=(0, 4))
    spec = {"first": GRAY_8, "second": wide}
    data = [{"first": torch.rand(8, 1, 8, 8), "second": torch.rand(8, 1, 8, 8)}]
    model = dfq.quantize(Shared().eval(), data, calibrator="pytorch-quantization", spec=spec, options=MAX)
    assert float(dict(quantized_modules(model))["convolution"].input_quantizer.amax) == pytest.approx(4.0)


GRAY_8 = InputSpec((1, 8, 8), value_range=(0, 1))
MAX = {"activations": "max"}


@pytest.mark.parametrize("framework", ["torch-ao", "brevitas"])
def test_each_input_quantizer_has_the_known_range(framework: str) -> None:
    found = example("image and metadata")
    narrow = map_inputs(lambda tensor: tensor * 0.1, found.random(8))
    run = dfq.run_quantization(found.network, [narrow], calibrator=framework, spec=found.spec)
    ranges = {round(tensor.format.range[1], 1) for tensor in run.coverage.quantized if tensor.format.range is not None}
    assert {1.0, 2.0} <= ranges
