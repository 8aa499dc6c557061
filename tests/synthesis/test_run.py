"""Synthesis and quantization from end to end, with fake plugins where the built-in ones are not the subject."""

from __future__ import annotations

import copy
import gc
import logging
import math
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from dfq_plugins.data.dataset import SyntheticDataset
from dfq_plugins.errors import DataError, DivergedError, ModelError, PluginError, UsageError
from dfq_plugins.statistics.batch_norm import layer_divergences
from dfq_plugins.synthesis.run import default_shard_size, synthesize
from dfq_plugins.types import InputSpec, ProgressEvent
from snapshot import Snapshot
from tiny_networks import nan_weights, other_channels

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dfq_plugins.host.registry import Registry

QUICK = {"iterations": 2, "precision": "float32"}


@pytest.fixture
def registry(pipeline_registry: Registry) -> Registry:
    return pipeline_registry


@pytest.fixture
def run(synthesize_tiny: Callable[..., SyntheticDataset]) -> Callable[..., SyntheticDataset]:
    return synthesize_tiny


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".safetensors"}


# ------------------------------------------------------------------------------------- what stays as it was


@pytest.mark.slow
@pytest.mark.parametrize("generator", ["gaussian", "inception", "bns", "bns+inception", "vandal"])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_caller_s_model_and_process_stay_as_they_are(
    run: Callable[..., SyntheticDataset], tiny_network: nn.Module, generator: str, mode: str
) -> None:
    tiny_network.train(mode == "train")
    tiny_network.stem.weight.requires_grad_(requires_grad=False)
    before = Snapshot(tiny_network)
    run(generator=generator)
    before.assert_unchanged()


@pytest.mark.parametrize("generator", ["failing", "failingvandal"])
def test_they_stay_so_after_an_exception_in_a_generator(
    run: Callable[..., SyntheticDataset], tiny_network: nn.Module, generator: str
) -> None:
    tiny_network.train()
    before = Snapshot(tiny_network)
    with pytest.raises(RuntimeError, match=r"out of luck|vandalism") as caught:
        run(generator=generator)
    assert caught.value.__notes__ == [f"in generator {generator!r} from module pipeline_plugins"]
    before.assert_unchanged()


def test_they_stay_so_after_an_error_in_the_optimization(
    run: Callable[..., SyntheticDataset], tiny_network: nn.Module
) -> None:
    before = Snapshot(tiny_network)
    with pytest.raises(DivergedError):
        run(options={"learning_rate": 1e30, "clamp": False, "iterations": 30})
    before.assert_unchanged()


def test_what_a_generator_does_to_its_model_reaches_neither_logits_nor_divergence(
    run: Callable[..., SyntheticDataset], tiny_network: nn.Module, tiny_spec: InputSpec
) -> None:
    data = run(generator="vandal", num_samples=40, batch_size=20)
    with torch.no_grad():
        expected = tiny_network(data.inputs())
    torch.testing.assert_close(next(iter(data.loader(40))).outputs["output"], expected)
    found = layer_divergences(tiny_network, [data.inputs()], tiny_spec)
    assert data.manifest.divergence == pytest.approx(found, rel=1e-3)


def run_plainly(call: Callable[[], SyntheticDataset]) -> SyntheticDataset:
    return call()


def run_in_float64(call: Callable[[], SyntheticDataset]) -> SyntheticDataset:
    torch.set_default_dtype(torch.float64)
    try:
        return call()
    finally:
        assert torch.get_default_dtype() == torch.float64
        torch.set_default_dtype(torch.float32)


def run_without_gradients(call: Callable[[], SyntheticDataset]) -> SyntheticDataset:
    with torch.no_grad():
        return call()


def run_in_inference_mode(call: Callable[[], SyntheticDataset]) -> SyntheticDataset:
    with torch.inference_mode():
        return call()


@pytest.mark.parametrize("surround", [run_in_float64, run_without_gradients, run_in_inference_mode])
def test_the_caller_s_surroundings_do_not_matter(
    run: Callable[..., SyntheticDataset], surround: Callable[..., SyntheticDataset]
) -> None:
    assert torch.equal(surround(run).inputs(), run_plainly(run).inputs())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_models_of_other_precision_are_inverted_in_float32(
    run: Callable[..., SyntheticDataset], tiny_network: nn.Module, dtype: torch.dtype
) -> None:
    before = Snapshot(tiny_network.to(dtype))
    assert run().inputs().dtype == torch.float32
    before.assert_unchanged()


# ------------------------------------------------------------------------------------- counts, names, options


@pytest.mark.slow
@pytest.mark.parametrize("generator", ["gaussian", "bns", "noise", "double"])
@pytest.mark.parametrize("count", [1, 33])
def test_exactly_as_many_samples_as_asked_for(run: Callable[..., SyntheticDataset], generator: str, count: int) -> None:
    data = run(generator=generator, num_samples=count, batch_size=16)
    assert len(data) == count
    assert data.inputs().shape == (count, 3, 8, 8)
    assert data.inputs().dtype == torch.float32


@pytest.mark.parametrize("count", [0, -3])
@pytest.mark.parametrize("name", ["num_samples", "batch_size"])
def test_counts_must_be_positive(run: Callable[..., SyntheticDataset], tmp_path: Path, name: str, count: int) -> None:
    with pytest.raises(UsageError, match=f"^{name} must be at least 1, got {count}.$"):
        run(**{name: count}, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_generator_is_answered_with_the_nearest(run: Callable[..., SyntheticDataset]) -> None:
    with pytest.raises(
        PluginError, match=r"Unknown generator 'gausian'. Did you mean 'gaussian'\? Available: gaussian"
    ):
        run(generator="gausian")


def test_an_unknown_option_is_answered_with_the_nearest(run: Callable[..., SyntheticDataset]) -> None:
    with pytest.raises(UsageError, match=r"Unknown option 'iteration' of generator 'bns'. Did you mean 'iterations'\?"):
        run(options={"iteration": 3})


def test_a_generator_that_yields_too_few_is_refused(run: Callable[..., SyntheticDataset]) -> None:
    message = "The generator 'short' from module pipeline_plugins was asked for 8 samples but yielded 7. Report this"
    with pytest.raises(DataError, match=message):
        run(generator="short")


def test_a_generator_that_never_stops_is_stopped(run: Callable[..., SyntheticDataset]) -> None:
    message = "The generator 'endless' from module pipeline_plugins was asked for 8 samples but yielded at least 16"
    with pytest.raises(DataError, match=message):
        run(generator="endless")


@pytest.mark.parametrize(
    ("shape", "size"), [((3, 32, 32), 256), ((3, 64, 64), 256), ((3, 224, 224), 32), ((40,), 256), ((1, 512, 512), 32)]
)
def test_large_inputs_make_small_shards(shape: tuple[int, ...], size: int) -> None:
    assert default_shard_size(InputSpec(shape)) == size


# ------------------------------------------------------------------------------------- what comes out


@pytest.mark.parametrize("generator", ["gaussian", "inception", "bns", "bns+inception", "noise"])
def test_every_sample_has_the_teacher_s_logits_and_a_label(
    run: Callable[..., SyntheticDataset], tiny_network: nn.Module, generator: str
) -> None:
    data = run(generator=generator, num_samples=40, batch_size=32)
    inputs, labels, outputs = next(iter(data.loader(40)))
    with torch.no_grad():
        expected = tiny_network(inputs)
    torch.testing.assert_close(outputs["output"], expected)
    if "inception" in generator:
        assert data.manifest.labels == "conditional"
        assert labels.bincount().tolist() == [10] * 4
    else:
        assert data.manifest.labels == "teacher"
        assert torch.equal(labels, expected.argmax(1))


def test_a_network_that_is_no_classifier_gives_inputs_and_outputs(registry: Registry, tiny_network: nn.Module) -> None:
    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = tiny_network

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.body.norm1(self.body.stem(inputs))

    data = synthesize(Features(), InputSpec((3, 8, 8)), num_samples=4, options=QUICK, registry=registry)
    assert data.manifest.labels == "none"
    assert data[0].labels is None
    assert set(data[0].outputs) == {"output"}
    assert list(data.manifest.divergence) == ["body.norm1"]


def test_the_manifest_says_how_the_set_was_made(
    run: Callable[..., SyntheticDataset], tiny_network: nn.Module, tiny_spec: InputSpec
) -> None:
    data = run(num_samples=40, batch_size=32, seed=11)
    manifest = data.manifest
    assert (manifest.generator.name, manifest.seed, manifest.num_samples, manifest.input_spec) == (
        "bns",
        11,
        40,
        tiny_spec,
    )
    assert manifest.generator.options["iterations"] == 2
    assert [shard.num_samples for shard in manifest.shards] == [32, 8]
    expected = layer_divergences(tiny_network, [data.inputs()], tiny_spec)
    assert manifest.divergence.keys() == {"input", "norm1", "norm2"}
    assert manifest.divergence == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_what_is_not_given_is_read_off_the_model(run: Callable[..., SyntheticDataset], tiny_spec: InputSpec) -> None:
    bare = InputSpec(tiny_spec.shape)
    assert run(spec=bare).spec == bare
    flat = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    flat[1].running_mean += 1
    assert run(flat, spec=None).spec == InputSpec((6,))


def test_progress_counts_the_samples_of_the_whole_run(run: Callable[..., SyntheticDataset]) -> None:
    heard: list[ProgressEvent] = []
    run(num_samples=80, batch_size=32, listeners=[heard.append])
    assert {event.total for event in heard} == {80}
    assert [event.completed for event in heard] == sorted(event.completed for event in heard)
    assert {32, 64, 80} <= {event.completed for event in heard}
    assert all(math.isfinite(event.metrics["loss"]) for event in heard)


def test_a_listener_that_raises_does_not_stop_the_run(
    run: Callable[..., SyntheticDataset], caplog: pytest.LogCaptureFixture
) -> None:
    def failing(_event: ProgressEvent) -> None:
        raise RuntimeError("bad listener")

    with caplog.at_level(logging.ERROR):
        assert len(run(listeners=[failing])) == 8
    assert "Dropped the listener" in caplog.text


class Resting(nn.Module):
    """A network with an auxiliary head that is not called in eval mode."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.head = nn.BatchNorm1d(4)
        self.head.running_mean += 1

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.body(inputs)
        return self.head(logits) if self.training else logits


@pytest.mark.parametrize("generator", ["gaussian", "bns"])
def test_layers_that_rest_are_left_out(
    run: Callable[..., SyntheticDataset], tiny_network: nn.Module, generator: str
) -> None:
    data = run(Resting(tiny_network).train(), generator=generator)
    assert data.manifest.divergence.keys() == {"input", "body.norm1", "body.norm2"}


def test_noise_needs_no_batch_norm(run: Callable[..., SyntheticDataset]) -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    data = run(plain, generator="gaussian")
    assert data.manifest.divergence == {}


# ------------------------------------------------------------------------------------- refusals leave nothing behind


def without_batch_norm(_network: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def never_trained(network: nn.Module) -> nn.Module:
    for norm in (network.norm1, network.norm2):
        norm.reset_running_stats()
    return network


def nan_statistics(network: nn.Module) -> nn.Module:
    network.norm1.running_var[0] = math.nan
    return network


def negative_variance(network: nn.Module) -> nn.Module:
    network.norm1.running_var[0] = -1.0
    return network


def uncopyable(network: nn.Module) -> nn.Module:
    network.lock = sys._getframe()
    return network


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_batch_norm, "so there is nothing to invert"),
        (never_trained, "was never trained, or its weights were not loaded"),
        (nan_weights, r"NaN or infinity was found in \['conv.weight'\]"),
        (nan_statistics, r"NaN or infinity was found in \['norm1.running_var'\]"),
        (negative_variance, r"running_var \+ eps, which must be positive, but is not in \['norm1'\]"),
        (other_channels, r"does not accept inputs of shape \(3, 8, 8\)"),
        (uncopyable, "The model TinyNetwork cannot be copied"),
    ],
)
@pytest.mark.parametrize("existing", [False, True])
def test_an_unusable_model_is_refused_and_nothing_is_written(
    run: Callable[..., SyntheticDataset],
    tiny_network: nn.Module,
    tmp_path: Path,
    spoil: Callable[[nn.Module], nn.Module],
    message: str,
    existing: bool,
) -> None:
    output = tmp_path / "out"
    if existing:
        output.mkdir()
    with pytest.raises(ModelError, match=message):
        run(spoil(tiny_network), output=output)
    assert output.exists() == existing
    assert not existing or not list(output.iterdir())


def test_a_wrong_number_of_classes_is_refused(run: Callable[..., SyntheticDataset], tmp_path: Path) -> None:
    message = r"num_classes is 7, but the model returns \(4,\) values per sample. Give the number of"
    with pytest.raises(UsageError, match=message):
        run(spec=InputSpec((3, 8, 8), num_classes=7), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_size_that_cannot_be_inferred_is_asked_for(run: Callable[..., SyntheticDataset]) -> None:
    with pytest.raises(UsageError, match=r"cannot be inferred from TinyNetwork. Pass InputSpec\(shape=\(3, height"):
        run(spec=None)


def test_the_temporary_folder_goes_with_the_data_set(run: Callable[..., SyntheticDataset]) -> None:
    data = run()
    folder = data.folder
    assert folder.is_dir()
    del data
    gc.collect()
    assert not folder.exists()


def test_the_temporary_folder_goes_after_an_exception(
    run: Callable[..., SyntheticDataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(RuntimeError, match="out of luck"):
        run(generator="failing")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------- resume, extend, refuse


class Interrupt:
    """Presses Ctrl-C as soon as a run has come so far."""

    def __init__(self, after: int) -> None:
        self.after = after

    def __call__(self, event: ProgressEvent) -> None:
        if event.completed > self.after:
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("generator", ["gaussian", "bns", "bns+inception"])
@pytest.mark.parametrize("after", [0, 40, 70])
def test_a_run_stopped_by_ctrl_c_goes_on_to_the_same_bytes(
    run: Callable[..., SyntheticDataset], tiny_network: nn.Module, tmp_path: Path, generator: str, after: int
) -> None:
    settings: dict[str, Any] = {"generator": generator, "num_samples": 80, "batch_size": 32}
    whole = run(**settings, output=tmp_path / "whole")
    before = Snapshot(tiny_network)
    with pytest.raises(KeyboardInterrupt):
        run(**settings, output=tmp_path / "stopped", listeners=[Interrupt(after)])
    before.assert_unchanged()
    assert len(files(tmp_path / "stopped")) == after // 32
    with pytest.raises(DataError, match=f"holds an unfinished run: {after // 32} of 3 shards are there. Resume it"):
        SyntheticDataset.open(tmp_path / "stopped")
    resumed = run(**settings, output=tmp_path / "stopped")
    assert files(tmp_path / "stopped") == files(tmp_path / "whole")
    assert resumed.manifest == whole.manifest


def test_a_missing_last_shard_is_made_again_to_the_same_bytes_though_it_is_small(
    run: Callable[..., SyntheticDataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a shard is compiled must not depend on the shards made before it."""
    compiled: list[int] = []

    def compiler(function: Callable[..., Any], **_: object) -> Callable[..., Any]:
        def slightly_other(inputs: torch.Tensor, *rest: torch.Tensor) -> Any:
            compiled.append(len(inputs))
            loss, pool = function(inputs * 1.01, *rest)
            return loss, pool

        return slightly_other

    work = 2 * 64 * (3 * 8 * 9 + 8 * 8 * 9) + 2 * 32
    monkeypatch.setattr("dfq_plugins.synthesis.compile_choice.COMPILE_WORTH", 50 * work * 2)
    monkeypatch.setattr(torch, "compile", compiler)
    settings: dict[str, Any] = {"num_samples": 72, "batch_size": 64, "output": tmp_path / "out"}
    run(**settings)
    assert compiled == [64, 64]
    before = files(tmp_path / "out")
    manifest = (tmp_path / "out" / "manifest.json").read_text()
    (tmp_path / "out" / sorted(before)[1]).unlink()
    (tmp_path / "out" / "manifest.json").write_text(manifest.replace('"complete"', '"incomplete"'))
    run(**settings)
    assert compiled == [64, 64]
    assert files(tmp_path / "out") == before


def test_a_finished_set_grows_and_keeps_its_bytes(run: Callable[..., SyntheticDataset], tmp_path: Path) -> None:
    first = run(num_samples=40, batch_size=32, output=tmp_path)
    known, before = first.inputs(), files(tmp_path)
    grown = run(num_samples=70, batch_size=32, output=tmp_path)
    assert len(grown) == 70
    assert torch.equal(grown.inputs()[:40], known)
    assert before.items() <= files(tmp_path).items()
    assert grown.inputs().flatten(1).unique(dim=0).shape[0] == 70


def test_a_finished_set_is_returned_without_work(run: Callable[..., SyntheticDataset], tmp_path: Path) -> None:
    first = run(output=tmp_path)
    heard: list[ProgressEvent] = []
    again = run(output=tmp_path, listeners=[heard.append])
    assert heard == []
    assert again.manifest == first.manifest


def test_fewer_samples_than_are_there_are_refused(run: Callable[..., SyntheticDataset], tmp_path: Path) -> None:
    run(output=tmp_path)
    with pytest.raises(UsageError, match=r"already holds 8 samples, but 5 are requested\. A set can only grow"):
        run(num_samples=5, output=tmp_path)


def test_another_model_s_folder_is_refused(
    run: Callable[..., SyntheticDataset], tiny_network: nn.Module, tmp_path: Path
) -> None:
    run(output=tmp_path)
    before = files(tmp_path)
    other = copy.deepcopy(tiny_network)
    other.linear.bias.data += 1
    with pytest.raises(DataError, match="holds the data set of another model: its model digest is"):
        run(other, output=tmp_path)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    "settings", [{"seed": 1}, {"options": {"iterations": 3}}, {"generator": "gaussian"}, {"spec": InputSpec((3, 8, 8))}]
)
def test_a_folder_of_other_settings_is_refused(
    run: Callable[..., SyntheticDataset], tmp_path: Path, settings: dict[str, Any]
) -> None:
    run(output=tmp_path)
    with pytest.raises(DataError, match="holds a data set with other settings"):
        run(**settings, output=tmp_path)


def test_a_run_that_diverges_keeps_its_finished_shards(
    run: Callable[..., SyntheticDataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dfq_plugins.synthesis.objective import InversionObjective

    settings: dict[str, Any] = {"num_samples": 64, "batch_size": 32, "output": tmp_path}
    original, calls = InversionObjective.__call__, []

    def failing_later(self: InversionObjective, *arguments: Any) -> tuple[torch.Tensor, ...]:
        calls.append(1)
        loss, gradient, pool = original(self, *arguments)
        return loss * (math.nan if len(calls) > 2 else 1), gradient, pool

    with monkeypatch.context() as patched:
        patched.setattr(InversionObjective, "__call__", failing_later)
        with pytest.raises(DivergedError, match="finished shards are kept") as caught:
            run(**settings)
    assert caught.value.__notes__ == ["in generator 'bns' from module dfq_plugins.generators.plugin"]
    assert len(files(tmp_path)) == 1
    assert len(run(**settings)) == 64
