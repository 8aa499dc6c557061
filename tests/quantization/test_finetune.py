"""`finetune` from end to end with fake plugins: what reaches whom, what is refused, and what stays as it was."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from dfq_plugins.distillation import TrainingOptions
from dfq_plugins.distillation.state import CHECKPOINT_FILE, capture
from dfq_plugins.errors import ArtifactError, DataError, DivergedError, ModelError, PluginError, UsageError
from dfq_plugins.network.origin import DataOriginWarning
from dfq_plugins.quantization.finetune import FinetuneRun, finetune
from dfq_plugins.synthesis.run import synthesize
from dfq_plugins.types import InputSpec
from places import SUPPORT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dfq_plugins.data.dataset import SyntheticDataset
    from dfq_plugins.host.registry import Registry
    from dfq_plugins.types import ProgressEvent

pytestmark = pytest.mark.filterwarnings("ignore:The network that coarse quantized")  # it rounds to two bits

QUICK = {"steps": 12, "batch_size": 16, "num_evaluations": 3, "learning_rate": 0.03, "teacher_precision": "float32"}


@pytest.fixture
def registry(finetuning_registry: Registry) -> Registry:
    return finetuning_registry


@pytest.fixture
def inputs() -> torch.Tensor:
    return torch.randn(60, 3, 8, 8, generator=torch.Generator().manual_seed(3)).clamp(-2, 2)


@pytest.fixture
def run(
    registry: Registry, tiny_network: nn.Module, tiny_spec: InputSpec, inputs: torch.Tensor
) -> Callable[..., FinetuneRun]:
    """Fine-tune the tiny network on noise in a few steps, where nothing else is given."""

    def tuned(model: nn.Module | None = None, data: Any = None, **settings: Any) -> FinetuneRun:
        settings["training"] = {**QUICK, **settings.pop("training", {})}
        settings = {"calibrator": "coarse", "spec": tiny_spec, "registry": registry, **settings}
        return finetune(tiny_network if model is None else model, inputs if data is None else data, **settings)

    return tuned


def worker() -> Any:
    return sys.modules["finetuning_plugins"].Coarse.last


def test_the_record_tells_everything(run: Callable[..., FinetuneRun], tmp_path: Path) -> None:
    events: list[ProgressEvent] = []
    result = run(recipe="w4a8", output=tmp_path / "out", listeners=[events.append])
    assert (result.calibrator, str(result.recipe)) == ("coarse", "w4a8")
    assert isinstance(result.training, TrainingOptions)
    assert [point.step for point in result.history] == [0, 4, 8, 12]
    assert result.history[0].agreement == pytest.approx(result.agreement_before)
    assert max(point.held_out_loss for point in result.history) == result.history[0].held_out_loss
    assert result.agreement >= result.agreement_before
    assert result.coverage.quantized[0].format.bits == 2
    assert [artifact.path for artifact in result.artifacts] == [tmp_path / "out" / "model.bin"]
    assert [event.stage for event in events] == ["calibrate"] + ["finetune"] * 12


@pytest.mark.parametrize("error", [ArtifactError("It differs."), RuntimeError("can't start new thread")])
def test_a_training_is_never_lost_to_an_export(
    run: Callable[..., FinetuneRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_arguments: object) -> None:
        raise error

    run()  # registers the plugin's module
    monkeypatch.setattr(sys.modules["finetuning_plugins"].Coarse, "export", fail)
    result = run(output=tmp_path / "out")
    assert result.agreement >= result.agreement_before
    assert result.artifacts == ()
    (rejected,) = result.rejected
    assert rejected.reason.startswith(("It differs.", "no more threads could be started"))


def test_the_calibrator_is_told_and_asked(run: Callable[..., FinetuneRun], tiny_spec: InputSpec) -> None:
    run()
    spec, recipe, training = worker().given
    assert (spec, str(recipe), training) == (tiny_spec, "w8a8", True)
    assert len(worker().seen) == 54  # a tenth is held out from calibration too
    assert worker().frozen == 1


def test_same_seed_same_model(run: Callable[..., FinetuneRun]) -> None:
    first, again, other = (run(training={"seed": seed, "mixup": 0.5}).model for seed in (0, 0, 1))
    assert torch.equal(first.stem.weight, again.stem.weight)  # type: ignore[union-attr, arg-type]
    assert not torch.equal(first.stem.weight, other.stem.weight)  # type: ignore[union-attr, arg-type]


def test_model_and_process_stay_as_they_were(run: Callable[..., FinetuneRun], tiny_network: nn.Module) -> None:
    tiny_network.train()
    before, random = capture(tiny_network), torch.random.get_rng_state()
    run()
    with pytest.raises(DivergedError):
        run(training={"learning_rate": 1e30, "gradient_clip": None})
    assert tiny_network.training
    assert all(torch.equal(value, before[name]) for name, value in capture(tiny_network).items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in tiny_network.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tiny_network.modules())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(("recipe", "rate"), [("w4a4", 0.004), ("w8a4", 0.004), ("w8a8", 0.00025)])
def test_narrower_values_take_larger_steps(recipe: str, rate: float, run: Callable[..., FinetuneRun]) -> None:
    assert run(recipe=recipe, training={"learning_rate": None}).training.learning_rate == rate


def test_a_run_that_was_interrupted_goes_on(run: Callable[..., FinetuneRun], tmp_path: Path) -> None:
    whole = run()

    def interrupt(event: ProgressEvent) -> None:
        if event.stage == "finetune" and event.completed == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(work=tmp_path / "work", listeners=[interrupt])
    assert (tmp_path / "work" / "finetune" / CHECKPOINT_FILE).is_file()
    steps: list[int] = []
    resumed = run(work=tmp_path / "work", listeners=[lambda event: steps.append(event.completed)])
    assert steps[1:] == list(range(5, 13))
    assert all(torch.equal(value, capture(whole.model)[name]) for name, value in capture(resumed.model).items())
    with pytest.raises(DataError, match="checkpoint of another run"):
        run(work=tmp_path / "work", recipe="w4a4")
    run(work=tmp_path / "work", training={"max_seconds": 60})  # the budget may change


def test_two_runs_never_share_a_work_folder(run: Callable[..., FinetuneRun], tmp_path: Path) -> None:
    def meddle(event: ProgressEvent) -> None:
        if event.stage == "finetune" and event.completed == 2:
            with pytest.raises(DataError, match=f"Another run is writing into {tmp_path}"):
                run(work=tmp_path)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(work=tmp_path, listeners=[meddle])
    assert run(work=tmp_path).history[-1].step == 12


def test_the_teacher_is_not_asked_again_for_inputs_that_stay_the_same(
    run: Callable[..., FinetuneRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dfq_plugins.distillation.loss import DistillationLoss

    asked: list[int] = []
    teach = DistillationLoss.teacher_outputs

    def counted(self: DistillationLoss, inputs: torch.Tensor) -> torch.Tensor:
        asked.append(len(inputs))
        return teach(self, inputs)

    monkeypatch.setattr(DistillationLoss, "teacher_outputs", counted)
    run()
    assert sum(asked) == 60
    asked.clear()
    run(training={"flip": True})
    assert sum(asked) == 6 + 12 * 16


def test_a_border_that_is_left_open_is_chosen_by_the_input(
    run: Callable[..., FinetuneRun], tiny_network: nn.Module
) -> None:
    assert run(training={"padding": None}).training.padding == 0  # 8 pixels are too few for one
    inputs = torch.randn(20, 3, 16, 16, generator=torch.Generator().manual_seed(3)).clamp(-2, 2)
    spec = InputSpec((3, 16, 16), (0.5,) * 3, (0.25,) * 3, (0.0, 1.0), 4)
    assert run(tiny_network, inputs, spec=spec, training={"padding": "none"}).training.padding == 2


class TestOrigin:
    @pytest.fixture
    def data(self, registry: Registry, tiny_network: nn.Module, tiny_spec: InputSpec) -> SyntheticDataset:
        return synthesize(tiny_network, tiny_spec, generator="noise", num_samples=40, registry=registry)

    def test_data_of_the_same_model(self, run: Callable[..., FinetuneRun], data: Any) -> None:
        assert run(data=data, spec=None, training={"label_weight": 1.0}).agreement > 0.5

    def test_data_of_another_model(self, run: Callable[..., FinetuneRun], data: Any, tiny_network: nn.Module) -> None:
        with torch.no_grad():
            tiny_network.linear.bias.add_(1.0)  # type: ignore[union-attr, operator]
        from dfq_plugins.network.digest import model_digest

        theirs, ours = data.manifest.model_digest[:12], model_digest(tiny_network)[:12]
        digests = rf"its digest is {theirs}, and the given model's is {ours}"
        with pytest.warns(DataOriginWarning, match=digests):
            run(data=data, spec=None, allow_other_network=True)
        with pytest.raises(DataError, match=rf"{digests}\. Give the model that it was made from"):
            run(data=data, spec=None)


class TestRefusals:
    def test_a_student_without_trainable_parameters(self, run: Callable[..., FinetuneRun]) -> None:
        with pytest.raises(ModelError, match="needs trainable parameters"):
            run(calibrator="untrainable")

    def test_outputs_of_another_shape(self, run: Callable[..., FinetuneRun]) -> None:
        with pytest.raises(ModelError, match=r"\(4,\) values per sample from the teacher and \(3,\) from the student"):
            run(calibrator="narrow")

    def test_an_unknown_tap(self, run: Callable[..., FinetuneRun]) -> None:
        with pytest.raises(UsageError, match=r"it calls none named 'convv'. Did you mean 'conv'\?"):
            run(training={"feature_weight": 1.0, "feature_layers": ("convv",)})

    def test_an_unknown_option(self, run: Callable[..., FinetuneRun]) -> None:
        with pytest.raises(UsageError, match=r"Unknown option 'step' of fine-tuning. Did you mean 'steps'\?"):
            run(training={"step": 3})


class TestLearningGenerators:
    @pytest.mark.parametrize(("share", "size"), [(1.0, 16), (0.5, 8), (0.2, 3), (0.01, 1)])
    def test_it_makes_its_share_of_each_batch(
        self, share: float, size: int, run: Callable[..., FinetuneRun], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seeker, asked = sys.modules["finetuning_plugins"].Seeker, []
        make = seeker.batch
        monkeypatch.setattr(seeker, "batch", lambda self, count: asked.append(count) or make(self, count))
        result = run(generator="seeker", training={"generator_fraction": share})
        assert set(asked) == {size}
        assert result.history[-1].held_out_loss < result.history[0].held_out_loss

    def test_it_resumes_exactly(self, run: Callable[..., FinetuneRun], tmp_path: Path) -> None:
        whole = run(generator="seeker").model

        def interrupt(event: ProgressEvent) -> None:
            if event.stage == "finetune" and event.completed == 6:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(generator="seeker", work=tmp_path, listeners=[interrupt])
        resumed = run(generator="seeker", work=tmp_path).model
        assert torch.equal(resumed.stem.weight, whole.stem.weight)  # type: ignore[union-attr, arg-type]

    def test_a_short_batch(self, run: Callable[..., FinetuneRun]) -> None:
        with pytest.raises(
            DataError, match=r"must return a batch of the requested shape, \(8, 3, 8, 8\), got \(7, 3, 8, 8\)"
        ):
            run(generator="shortseeker")

    def test_one_that_lacks_methods(self, run: Callable[..., FinetuneRun]) -> None:
        with pytest.raises(PluginError, match=r"builds a Idle without batch, feedback, restore, state\(\)"):
            run(generator="idle")

    def test_one_that_makes_data_sets(self, run: Callable[..., FinetuneRun]) -> None:
        with pytest.raises(UsageError, match="'noise' makes data sets, but data is given too"):
            run(generator="noise")

    def test_one_that_also_makes_data_sets(
        self, run: Callable[..., FinetuneRun], registry: Registry, tiny_network: nn.Module, tiny_spec: InputSpec
    ) -> None:
        data = synthesize(tiny_network, tiny_spec, generator="both", num_samples=20, registry=registry)
        assert run(data=data, spec=None, generator="both").history[-1].step == 12

    def test_one_that_only_promises_to(self, registry: Registry, tiny_network: nn.Module, tiny_spec: InputSpec) -> None:
        with pytest.raises(PluginError, match=r"builds a Seeker, which is not a dfq_plugins.types.DataGenerator"):
            synthesize(tiny_network, tiny_spec, generator="promised", registry=registry)

    def test_its_batches_are_mixed_and_augmented_too(self, run: Callable[..., FinetuneRun]) -> None:
        plain, shown = (run(generator="seeker", training={"padding": border}).model for border in (0, 2))
        assert not torch.equal(plain.stem.weight, shown.stem.weight)  # type: ignore[union-attr, arg-type]

    def test_it_hears_how_far_the_training_is(self, run: Callable[..., FinetuneRun], registry: Registry) -> None:
        heard: list[float] = []
        maker: Any = registry.create("learning generator", "seeker")
        maker.progress = heard.append
        run(generator=maker)
        assert heard == pytest.approx([step / 12 for step in range(12)])

    def test_it_may_refuse_before_anything_is_calibrated(
        self, run: Callable[..., FinetuneRun], registry: Registry
    ) -> None:
        def refuse(_model: nn.Module, spec: InputSpec) -> None:
            raise UsageError(f"not for {spec.shape}")

        events: list[ProgressEvent] = []
        maker: Any = registry.create("learning generator", "seeker")
        maker.check_supported = refuse
        with pytest.raises(UsageError, match=r"not for \(3, 8, 8\)"):
            run(generator=maker, listeners=[events.append])
        assert events == []

    def test_it_makes_no_data_set_by_itself(
        self, registry: Registry, tiny_network: nn.Module, tiny_spec: InputSpec
    ) -> None:
        told = r"'seeker' learns from a student .*finetune\(model, data.*or in dfq finetune with --generator seeker"
        with pytest.raises(UsageError, match=told):
            synthesize(tiny_network, tiny_spec, generator="seeker", registry=registry)


RANKS = """
import sys, torch
from importlib.metadata import EntryPoint
from pathlib import Path
sys.path[:0] = [{tests!r}]
torch.set_num_threads(1)
from tiny_networks import TinyNetwork, settle_batch_norm
from dfq_plugins.distillation.state import capture
from dfq_plugins.network.origin import DataOriginWarning
from dfq_plugins.quantization.finetune import finetune
from dfq_plugins.host.registry import build_registry
from dfq_plugins.types import InputSpec
from safetensors.torch import save_file
import os

torch.manual_seed(0)
network = settle_batch_norm(TinyNetwork(), torch.randn(64, 3, 8, 8).clamp(-2, 2))
inputs = torch.randn(60, 3, 8, 8, generator=torch.Generator().manual_seed(3)).clamp(-2, 2)
registry = build_registry(entry_points=[EntryPoint("outside", "finetuning_plugins", "dfq_plugins")])
run = finetune(
    network, inputs, calibrator="coarse", registry=registry, training={quick!r}, output={folder!r} + "/out",
    work={folder!r} + "/work", spec=InputSpec((3, 8, 8), (0.5,) * 3, (0.25,) * 3, (0.0, 1.0), 4),
)
rank = os.environ.get("RANK", "alone")
save_file(capture(run.model), {folder!r} + f"/{{rank}}.safetensors")
start = {{name: ((value * 4).round() / 4).detach() for name, value in network.named_parameters()}}
save_file(start, {folder!r} + f"/start-{{rank}}.safetensors")
sys.stdout.write(f"artifacts {{rank}} {{len(run.artifacts)}}\\n")  # at once: two processes write here
"""


@pytest.mark.slow
@pytest.mark.timeout(900)  # four processes import torch, which takes long on a busy machine
def test_two_processes_train_one_model(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    script = tmp_path / "train.py"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    results = {}
    for name, command in (("alone", [sys.executable]), ("both", launch)):
        folder = tmp_path / name
        folder.mkdir()
        quick = {**QUICK, "mixup": 0.4, "flip": True}
        script.write_text(RANKS.format(tests=str(SUPPORT), quick=quick, folder=str(folder)))
        done = subprocess.run([*command, str(script)], capture_output=True, text=True, check=False, timeout=400)
        assert done.returncode == 0, done.stderr
        results |= {path.stem: load_file(path) for path in folder.glob("*.safetensors")}
    assert "artifacts 0 1" in done.stdout
    assert "artifacts 1 0" in done.stdout
    start, alone, first, second = (results[name] for name in ("start-alone", "alone", "0", "1"))
    assert all(torch.equal(first[name], second[name]) for name in alone)
    # Sums in another order, which Adam enlarges where gradients are near zero: small beside what was learned.
    apart, moved = (torch.cat([(one[name] - alone[name]).flatten() for name in start]).norm() for one in (first, start))
    assert apart < 0.1 * moved


def test_a_warning_for_nobody(run: Callable[..., FinetuneRun]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(recipe="w4a8", training={"feature_weight": 0.1})
