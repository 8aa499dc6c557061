"""Synthesis and quantization from end to end, with fake plugins where the built-in ones are not the subject."""

from __future__ import annotations

import copy
import gc
import logging
import math
import random
import re
import sys
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from dfq_plugins.data.dataset import SyntheticDataset
from dfq_plugins.errors import DataError, DivergedError, ModelError, PluginError, UsageError
from dfq_plugins.generators.noise import Noise
from dfq_plugins.generators.start import known_noise
from dfq_plugins.host.registry import Registry, build_registry
from dfq_plugins.network.agreement import top1_agreement
from dfq_plugins.quantization.run import quantize, run_quantization
from dfq_plugins.statistics.batch_norm import layer_divergences
from dfq_plugins.synthesis.run import default_shard_size, synthesize
from dfq_plugins.types import Batch, InputSpec, ProgressEvent, Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

QUICK = {"iterations": 2, "precision": "float32"}
PLUGINS = {
    "builtin-generators": "dfq_plugins.generators.plugin",
    "outside": "pipeline_plugins",
}


@pytest.fixture
def registry() -> Iterator[Registry]:
    yield build_registry(
        entry_points=[EntryPoint(name, module, "dfq_plugins") for name, module in PLUGINS.items()], strict=True
    )
    del sys.modules["pipeline_plugins"]


@pytest.fixture
def run(registry: Registry, tiny_network: nn.Module, tiny_spec: InputSpec) -> Callable[..., SyntheticDataset]:
    """Synthesize with few and short steps, from the tiny network where no other is given."""

    def synthesized(model: nn.Module | None = None, **settings: Any) -> SyntheticDataset:
        name = settings.setdefault("generator", "bns")
        builtin = name in {"bns", "inception", "bns+inception"}
        settings["options"] = {**(QUICK if builtin else {}), **settings.pop("options", {})}
        settings = {"spec": tiny_spec, "num_samples": 8, "registry": registry, **settings}
        return synthesize(tiny_network if model is None else model, settings.pop("spec"), **settings)

    return synthesized


class Snapshot:
    """Everything about a model and the process that must stay as it was."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.values = {name: value.clone() for name, value in model.state_dict().items()}
        self.pointers = [value.data_ptr() for value in model.state_dict().values()]
        self.modes = self._modes()
        self.random = self._random()

    def _modes(self) -> list[object]:
        parameters = [(p.requires_grad, p.grad, p.device, p.dtype, p.stride()) for p in self.model.parameters()]
        modules = [
            (
                module.training,
                list(module._forward_hooks),
                list(module._forward_pre_hooks),
                list(module._backward_hooks),
            )
            for module in self.model.modules()
        ]
        process = (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(), nn.Conv2d, nn.Linear)
        return [*parameters, *modules, process]

    @staticmethod
    def _random() -> tuple[object, ...]:
        numpy_state: Any = np.random.get_state()  # noqa: NPY002  the global state is the subject
        return random.getstate(), numpy_state[1].tolist(), numpy_state[2], torch.get_rng_state().tolist()

    def assert_unchanged(self) -> None:
        state = self.model.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in self.values.items())
        assert [value.data_ptr() for value in state.values()] == self.pointers
        assert self._modes() == self.modes
        assert self._random() == self.random


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".safetensors"}


# ------------------------------------------------------------------------------------- what stays as it was


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
    torch.testing.assert_close(next(iter(data.loader(40))).logits, expected)
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
    inputs, labels, logits = next(iter(data.loader(40)))
    with torch.no_grad():
        expected = tiny_network(inputs)
    torch.testing.assert_close(logits, expected)
    if "inception" in generator:
        assert data.manifest.labels == "conditional"
        assert labels.bincount().tolist() == [10] * 4
    else:
        assert data.manifest.labels == "teacher"
        assert torch.equal(labels, expected.argmax(1))


def test_a_network_that_is_no_classifier_gives_inputs_alone(registry: Registry, tiny_network: nn.Module) -> None:
    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = tiny_network

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.body.norm1(self.body.stem(inputs))

    data = synthesize(Features(), InputSpec((3, 8, 8)), num_samples=4, options=QUICK, registry=registry)
    assert data.manifest.labels == "none"
    assert data[0].labels is None
    assert data[0].logits is None
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
    assert run(spec=bare).spec.num_classes == 4
    flat = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    flat[1].running_mean += 1
    assert run(flat, spec=None).spec == InputSpec((6,), num_classes=3)


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


def nan_weights(network: nn.Module) -> nn.Module:
    network.conv.weight.data[0] = math.nan
    return network


def nan_statistics(network: nn.Module) -> nn.Module:
    network.norm1.running_var[0] = math.nan
    return network


def negative_variance(network: nn.Module) -> nn.Module:
    network.norm1.running_var[0] = -1.0
    return network


def other_channels(network: nn.Module) -> nn.Module:
    network.stem = nn.Conv2d(1, 8, 3, padding=1)
    return network


def uncopyable(network: nn.Module) -> nn.Module:
    network.lock = sys._getframe()
    return network


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_batch_norm, "so there is nothing to invert"),
        (never_trained, "was never trained, or its weights were not loaded"),
        (nan_weights, r"NaN or infinity was found in \['conv.weight'\]"),
        (nan_statistics, r"NaN or infinity was found in \['norm1.running_var'\]"),
        (negative_variance, r"running_var is negative in \['norm1'\]"),
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
    message = r"num_classes is 7, but the model returns \(4,\) values per sample. Omit num_classes"
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


# ------------------------------------------------------------------------------------- quantization


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
    assert [len(batch) for batch in recorder().seen] == [64, 36]
    assert torch.equal(torch.cat(recorder().seen), data.inputs())


def test_without_a_specification_the_data_tell_the_shape(quantized: Callable[..., Any]) -> None:
    quantized(DATA, spec=None)
    assert recorder().given[1] == InputSpec((3, 8, 8), num_classes=4)


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
    assert quantized(DATA, calibrator="inverting").agreement < 0.1

    class Fixed(nn.Module):
        def __init__(self, *classes: int) -> None:
            super().__init__()
            self.answer = nn.functional.one_hot(torch.tensor(classes), 4).float()

        def forward(self, _batch: torch.Tensor) -> torch.Tensor:
            return self.answer

    batches = [torch.zeros(4, 1)] * 3
    assert top1_agreement(Fixed(0, 1, 2, 3), Fixed(0, 1, 2, 0), batches, limit=100) == 0.75
    assert math.isnan(top1_agreement(nn.Identity(), nn.Identity(), [torch.zeros(2, 3, 4)], limit=8))


def test_agreement_reads_no_more_than_its_limit() -> None:
    def endless() -> Iterator[torch.Tensor]:
        while True:
            yield torch.zeros(4, 2)

    assert top1_agreement(nn.Identity(), nn.Identity(), endless(), limit=10) == 1


def test_calibration_reports_progress(quantized: Callable[..., Any]) -> None:
    heard: list[ProgressEvent] = []
    quantized(DATA, listeners=[heard.append])
    assert [(event.stage, event.completed, event.total) for event in heard][:2] == [
        ("calibrate", 64, 70),
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
        ([DATA, DATA[:, :1]], DataError, r"takes samples of shape \(3, 8, 8\), and the data holds \(1, 8, 8\)"),
        (NAN, DataError, "^Inputs must be finite, but a batch holds NaN or infinity. Remove or repair those samples.$"),
        (DATA / 0, DataError, "must be finite"),
        ((DATA * 9).byte(), DataError, r"floating-point network inputs, got torch.uint8\. Normalize the data first\.$"),
        (
            DATA[:0],
            DataError,
            "^Calibration needs at least one sample, got none. Provide a data set or batches of inputs.$",
        ),
        ([], DataError, "needs at least one sample"),
        ("folder", UsageError, r"an iterable of batches, got str. Open a folder with SyntheticDataset.open\(folder\)."),
        (7, UsageError, "an iterable of batches, got int"),
        ([{"x": DATA}], UsageError, "A batch must be a tensor, or a tuple that starts with one, got dict."),
        ([()], UsageError, "A batch must be a tensor, or a tuple that starts with one, got tuple."),
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


def test_noise_of_a_known_range_is_centered_in_it() -> None:
    assert known_noise(InputSpec((1, 4), value_range=(-2.0, 6.0))) == Noise(2.0, 2.0)
    assert known_noise(InputSpec((1, 4))) == Noise()
    assert known_noise(InputSpec((1, 4), (0.5,), (0.2,), (0.0, 1.0))) == Noise()
