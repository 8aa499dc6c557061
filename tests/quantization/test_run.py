"""`quantize` and `run_quantization`: data of every form, what is reported, what is refused, what stays as it was."""

from __future__ import annotations

import math
import re
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from dfq_plugins.data.calibration_data import as_calibration_data
from dfq_plugins.data.dataset import SyntheticDataset
from dfq_plugins.errors import DataError, DfqWarning, ModelError, PluginError, UsageError
from dfq_plugins.quantization.run import quantize, run_quantization
from dfq_plugins.types import Batch, InputSpec, ProgressEvent, Recipe
from snapshot import Snapshot
from tiny_networks import nan_weights, other_channels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from dfq_plugins.host.registry import Registry


@pytest.fixture
def registry(pipeline_registry: Registry) -> Registry:
    return pipeline_registry


@pytest.fixture
def run(synthesize_tiny: Callable[..., SyntheticDataset]) -> Callable[..., SyntheticDataset]:
    return synthesize_tiny


@pytest.fixture
def quantized(registry: Registry, tiny_network: nn.Module, tiny_spec: InputSpec) -> Callable[..., Any]:
    def run_one(data: Any, **settings: Any) -> Any:
        settings = {"calibrator": "recorder", "spec": tiny_spec, "registry": registry, **settings}
        return run_quantization(settings.pop("model", tiny_network), data, **settings)

    return run_one


def recorder() -> Any:
    return sys.modules["pipeline_plugins"].Recorder.last


DATA = torch.randn(70, 3, 8, 8, generator=torch.Generator().manual_seed(2))
FORMS: list[tuple[str, Callable[[], Any]]] = [
    ("tensor", lambda: DATA),
    ("double", DATA.double),
    ("tensors", lambda: list(DATA.split(30))),
    ("one-shot iterator", lambda: iter(DATA.split(30))),
    ("batches", lambda: [Batch(part) for part in DATA.split(30)]),
    ("pairs", lambda: [(part, torch.zeros(len(part))) for part in DATA.split(30)]),
    ("lists", lambda: [[part, 1] for part in DATA.split(30)]),
    ("with an empty batch", lambda: [DATA[:0], DATA]),
    ("loader", lambda: torch.utils.data.DataLoader(torch.utils.data.TensorDataset(DATA), batch_size=30)),
]


@pytest.mark.parametrize("form", [form for _, form in FORMS], ids=[name for name, _ in FORMS])
def test_calibration_data_of_every_form(quantized: Callable[..., Any], form: Callable[[], Any]) -> None:
    quantized(form())
    torch.testing.assert_close(torch.cat(recorder().seen), DATA)


def test_a_synthetic_data_set_brings_its_own_specification(
    quantized: Callable[..., Any], run: Callable[..., SyntheticDataset], tiny_spec: InputSpec
) -> None:
    data = run(num_samples=100, generator="noise")
    quantized(data, spec=None)
    assert recorder().given[1] == tiny_spec
    assert [len(batch) for batch in recorder().seen] == [50, 50]
    assert torch.equal(torch.cat(recorder().seen), data.inputs())


def test_without_a_specification_the_data_tell_the_shape(quantized: Callable[..., Any]) -> None:
    quantized(DATA, spec=None)
    assert recorder().given[1] == InputSpec((3, 8, 8))


@pytest.mark.parametrize("recipe", ["w4a8", Recipe(4, 8)])
def test_a_run_reports_everything_and_the_object_is_native(
    quantized: Callable[..., Any], registry: Registry, tiny_network: nn.Module, tmp_path: Path, recipe: str | Recipe
) -> None:
    result = quantized(DATA, recipe=recipe, output=tmp_path)
    model, _, given, training = recorder().given
    assert result.model is recorder().converted
    assert (result.recipe, given, training, result.calibrator) == (Recipe(4, 8), Recipe(4, 8), False, "recorder")
    assert result.coverage.quantized[0].name == "stem"
    assert result.artifacts[0].path == tmp_path / "model.bin"
    assert result.agreement == 1
    assert model is not tiny_network
    assert not model.training
    native = quantize(tiny_network, DATA, calibrator="recorder", registry=registry)
    assert native is recorder().converted


def test_nothing_is_exported_unasked(quantized: Callable[..., Any]) -> None:
    assert quantized(DATA).artifacts == ()


def test_agreement_is_the_share_of_equal_answers(quantized: Callable[..., Any]) -> None:
    with pytest.warns(DfqWarning, match="does not follow the float network"):
        assert quantized(DATA, calibrator="inverting").agreement < 0.1
    unsaid = quantized(DATA, spec=None)
    assert math.isnan(unsaid.agreement)
    assert [output.same_largest for output in unsaid.output_agreement] == [1.0]


def test_calibration_reports_progress(quantized: Callable[..., Any]) -> None:
    heard: list[ProgressEvent] = []
    quantized(DATA, listeners=[heard.append])
    assert [(event.stage, event.completed, event.total) for event in heard][:2] == [
        ("calibrate", 35, 70),
        ("calibrate", 70, 70),
    ]


NAN = DATA.clone()
NAN[3, 0, 0, 0] = math.nan


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (
            DATA[:, :, :4],
            DataError,
            r"^A batch of inputs must have the shape \(samples, 3, 8, 8\), got \(\d+, 3, 4, 8\)\. ",
        ),
        ([DATA, DATA[:, :1]], DataError, r"must have the shape \(samples, 3, 8, 8\), got \(\d+, 1, 8, 8\)"),
        (NAN, DataError, "^Inputs must be finite, but a batch holds NaN or infinity. Remove or repair those samples.$"),
        (DATA / 0, DataError, "must be finite"),
        (
            (DATA * 9).byte(),
            DataError,
            r"floating-point network inputs, got torch.uint8 for inputs\. Normalize images first\.",
        ),
        (
            DATA[:0],
            DataError,
            "^Calibration needs at least one sample, got none. Provide a data set or batches of inputs.$",
        ),
        ([], DataError, "needs at least one sample"),
        ("folder", UsageError, r"an iterable of batches, got str. Open a folder with SyntheticDataset.open\(folder\)."),
        (7, UsageError, "an iterable of batches, got int"),
        ([{"x": DATA}], DataError, "The network takes one input of shape .*, got inputs by name: x. Give a tensor"),
        ([()], UsageError, "A batch must be a tensor, a tuple that starts with one, or .*, got tuple for inputs."),
    ],
)
def test_unusable_calibration_data_is_refused(
    quantized: Callable[..., Any], data: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        quantized(data)
    assert not getattr(caught.value, "__notes__", [])


def test_an_error_in_the_user_s_own_iterable_is_not_blamed_on_the_calibrator(quantized: Callable[..., Any]) -> None:
    def failing() -> Iterator[torch.Tensor]:
        yield DATA
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone") as caught:
        quantized(failing())
    assert not getattr(caught.value, "__notes__", [])


def test_a_damaged_data_set_is_not_blamed_on_the_calibrator(
    quantized: Callable[..., Any], run: Callable[..., SyntheticDataset], tmp_path: Path
) -> None:
    run(output=tmp_path)
    shard = next(tmp_path.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(DataError, match="is damaged: its SHA-256 should be") as caught:
        quantized(SyntheticDataset.open(tmp_path))
    assert not getattr(caught.value, "__notes__", [])


def test_a_model_that_does_not_fit_the_specification_is_refused(
    quantized: Callable[..., Any], tiny_network: nn.Module
) -> None:
    with pytest.raises(ModelError, match=r"does not accept inputs of shape \(3, 8, 8\)"):
        quantized(DATA, model=other_channels(tiny_network))
    with pytest.raises(ModelError, match="NaN or infinity was found in"):
        quantized(DATA, model=nan_weights(tiny_network))


def test_an_unknown_calibrator_is_answered_with_the_nearest(quantized: Callable[..., Any]) -> None:
    with pytest.raises(
        PluginError, match=r"Unknown calibrator 'record'. Did you mean 'recorder'\? Available: recorder"
    ):
        quantized(DATA, calibrator="record")


def test_a_calibrator_whose_framework_is_missing_says_the_pip_line(quantized: Callable[..., Any]) -> None:
    message = re.escape(
        "Calibrator 'absent' needs no_such_framework (not installed). Run: pip install \"dfq-plugins[absent]\""
    )
    with pytest.raises(PluginError, match=message):
        quantized(DATA, calibrator="absent")


def test_an_unreadable_recipe_is_refused(quantized: Callable[..., Any]) -> None:
    with pytest.raises(UsageError, match=r"A recipe is w<bits>a<bits>, e.g. w8a8 or w4a8, got '8bit'\."):
        quantized(DATA, recipe="8bit")


@pytest.mark.parametrize("calibrator", ["recorder", "clumsy"])
def test_quantization_leaves_the_caller_s_model_and_process_as_they_are(
    quantized: Callable[..., Any], tiny_network: nn.Module, calibrator: str
) -> None:
    tiny_network.train()
    data = DATA.clone()
    before = Snapshot(tiny_network)
    if calibrator == "clumsy":
        with pytest.raises(RuntimeError, match="no observers") as caught:
            quantized(data, calibrator=calibrator)
        assert caught.value.__notes__ == ["in calibrator 'clumsy' from module pipeline_plugins"]
    else:
        quantized(data)
    before.assert_unchanged()
    assert torch.equal(data, DATA)


@pytest.mark.parametrize("sizes", [[65], [64, 1], [40, 60]])
def test_batches_are_even(sizes: list[int]) -> None:
    """Frameworks average over batches: a last batch of one sample weighed as much as 64."""
    samples = torch.arange(float(sum(sizes))).reshape(-1, 1)
    given = samples if len(sizes) == 1 else list(samples.split(sizes))
    batches = list(as_calibration_data(given, None))
    assert torch.equal(torch.cat(batches), samples)
    counts = [len(batch) for batch in batches]
    assert max(counts) - min(counts) <= 1
    assert max(counts) <= 64
