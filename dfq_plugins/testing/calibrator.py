"""The contract of a calibrator."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, ClassVar

import pytest
import torch
from torch import nn

from dfq_plugins.demo.network import DIGITS_SPEC, digits_network
from dfq_plugins.errors import DataError, UsageError
from dfq_plugins.model_state import preserve_global_state
from dfq_plugins.testing.expectations import outputs, refused
from dfq_plugins.testing.material import QuantizedRun, Task, smooth_noise
from dfq_plugins.testing.snapshots import differing, model_state, process_state
from dfq_plugins.types import Artifact, Calibrator, Coverage, InputSpec, Recipe

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_RUNS = pytest.StashKey[dict[tuple[type, str], QuantizedRun]]()


class CalibratorContract:
    """Tests that every `Calibrator` must pass. Subclass it and define the fixture `calibrator`.

    The network is the trained digits classifier of `dfq demo`, and the inputs are smooth noise in its valid range.
    Override `model`, `spec` and `samples` together for a framework that needs a different kind of network, and `recipe`
    for one that does not support 8 bits.

    Attributes:
        least_agreement: minimum share of samples on which the quantized network predicts the float network's class.
        largest_loaded_deviation: mean difference between the outputs of a loaded artifact and of the quantized network,
            as a share of the difference that quantization makes. Values between two levels may be rounded either way.
    """

    least_agreement: ClassVar[float] = 0.8
    largest_loaded_deviation: ClassVar[float] = 0.1

    @pytest.fixture
    def calibrator(self) -> Calibrator:
        """Return the calibrator under test; every subclass defines it."""
        raise NotImplementedError(f"{type(self).__name__} needs a fixture 'calibrator' that returns the calibrator.")

    @pytest.fixture
    def model(self) -> nn.Module:
        """Return a trained float network in eval mode."""
        return digits_network()

    @pytest.fixture
    def spec(self) -> InputSpec:
        """Return the network's input specification."""
        return DIGITS_SPEC

    @pytest.fixture
    def samples(self, spec: InputSpec) -> torch.Tensor:
        """Return inputs `(samples, *shape)` for calibration and comparison."""
        return smooth_noise(spec)

    @pytest.fixture
    def recipe(self) -> Recipe:
        """Return bit widths at which the framework is close to float accuracy."""
        return Recipe(8, 8)

    @pytest.fixture
    def unsupported_recipe(self) -> Recipe:
        """Return bit widths that the framework does not support."""
        return Recipe(1, 1)

    @pytest.fixture
    def task(self, model: nn.Module, spec: InputSpec, recipe: Recipe, samples: torch.Tensor) -> Task:
        """Return these fixtures as one record."""
        return Task(model, spec, recipe, samples)

    @pytest.fixture
    def run(self, request: pytest.FixtureRequest, calibrator: Calibrator, task: Task) -> QuantizedRun:
        """Return the result of one run, shared by the tests that only read it."""
        case = (type(self), request.node.callspec.id if hasattr(request.node, "callspec") else "")
        runs = request.config.stash.setdefault(_RUNS, {})
        if case not in runs:
            runs[case] = QuantizedRun(calibrator, self.quantized(calibrator, task))
        return runs[case]

    @pytest.fixture(autouse=True)
    def _process_as_in_the_host(self) -> Iterator[None]:
        """Restore the process state after each test, whatever the calibrator changed."""
        with preserve_global_state():
            yield

    def quantized(self, calibrator: Calibrator, task: Task, batches: Iterable[torch.Tensor] | None = None) -> nn.Module:
        """Prepare, calibrate and convert, as the host does."""
        prepared = calibrator.prepare(task.model, task.spec, task.recipe, training=False)
        with torch.no_grad():
            calibrator.calibrate(prepared, [task.samples] if batches is None else batches)
        return calibrator.convert(prepared)

    def test_each_step_returns_what_the_next_one_takes(
        self, calibrator: Calibrator, task: Task, tmp_path: Path
    ) -> None:
        """`prepare`, `calibrate`, `convert`, `describe`, `export`, in the host's order."""
        prepared = calibrator.prepare(task.model, task.spec, task.recipe, training=False)
        assert isinstance(prepared, nn.Module), f"prepare() must return an nn.Module, got {type(prepared).__name__}."
        with torch.no_grad():
            calibrator.calibrate(prepared, [task.samples])
        converted = calibrator.convert(prepared)
        assert isinstance(converted, nn.Module), f"convert() must return an nn.Module, got {type(converted).__name__}."
        coverage = calibrator.describe(converted)
        assert isinstance(coverage, Coverage), f"describe() must return a Coverage, got {type(coverage).__name__}."
        artifacts = calibrator.export(converted, task.spec, tmp_path / "artifacts")
        assert isinstance(artifacts, tuple), f"export() must return a tuple, got {type(artifacts).__name__}."
        assert all(isinstance(artifact, Artifact) for artifact in artifacts), "export() must return Artifact records."

    def test_the_callers_model_stays_as_it_is(self, calibrator: Calibrator, task: Task, tmp_path: Path) -> None:
        """Weights, buffers, classes, modes, hooks, requires_grad."""
        before = model_state(task.model)
        converted = self.quantized(calibrator, task)
        calibrator.export(converted, task.spec, tmp_path / "artifacts")
        changed = differing(before, model_state(task.model))
        assert not changed, f"The caller's model must not change, but {changed[:5]} did. Work on copy.deepcopy()."

    def test_the_process_stays_as_it_is(self, calibrator: Calibrator, task: Task, tmp_path: Path) -> None:
        """Default dtype, grad mode, quantized engine, and the names in `torch`, `torch.nn` and `torch.nn.functional`.

        The host restores the random states, because frameworks draw from them.
        """
        before = {name: value for name, value in process_state().items() if not name.endswith("random state")}
        converted = self.quantized(calibrator, task)
        calibrator.export(converted, task.spec, tmp_path / "artifacts")
        changed = differing(before, process_state())
        assert not changed, (
            f"The process state must not change, but {changed[:5]} did. Restore what the framework patches."
        )

    def test_the_quantized_model_takes_any_batch_size(self, run: QuantizedRun, task: Task) -> None:
        """Both one sample and many give finite outputs with the float model's shape."""
        for inputs in (task.samples, task.samples[:1]):
            expected, found = outputs(task.model, inputs), outputs(run.converted, inputs)
            assert found.shape == expected.shape, (
                f"The quantized model's outputs must have the float model's shape, {tuple(expected.shape)}, got "
                f"{tuple(found.shape)}."
            )
            assert bool(found.isfinite().all()), "The quantized model's outputs must be finite."

    def test_the_quantized_model_agrees_with_the_float_model(self, run: QuantizedRun, task: Task) -> None:
        """Both predict the same class for most samples."""
        expected, found = (outputs(model, task.samples).flatten(1) for model in (task.model, run.converted))
        finite = (expected.isfinite() & found.isfinite()).all(1)
        same = (expected.argmax(1) == found.argmax(1)) & finite
        agreement = same.float().mean().item()
        assert agreement >= self.least_agreement, (
            f"At {task.recipe} the quantized model must predict the float model's class for at least "
            f"{self.least_agreement:.0%} of {len(task.samples)} samples, got {agreement:.0%}."
        )

    def test_the_quantized_model_is_no_float_model(self, run: QuantizedRun, task: Task) -> None:
        """Its outputs show rounding."""
        same = torch.allclose(
            outputs(task.model, task.samples), outputs(run.converted, task.samples), rtol=1e-4, atol=1e-5
        )
        assert not same, (
            f"At {task.recipe} outputs must differ by rounding, but they equal the float model's: nothing is quantized."
        )

    def test_the_ranges_come_from_the_data(self, calibrator: Calibrator, task: Task) -> None:
        """Inputs with low contrast give other ranges, and so a different quantized network."""
        first, second = (
            outputs(self.quantized(calibrator, task, [batch]), task.samples)
            for batch in (task.samples, task.samples * 0.02)
        )
        assert not torch.equal(first, second), (
            "Ranges must come from the data, but different batches gave the same network."
        )

    def test_the_same_data_give_the_same_model(self, calibrator: Calibrator, task: Task) -> None:
        """A calibrator object may be reused, and keeps nothing from an earlier run."""
        first = outputs(self.quantized(calibrator, task), task.samples)
        self.quantized(calibrator, task, [task.samples * 0.02])
        again = outputs(self.quantized(calibrator, task), task.samples)
        assert torch.equal(first, again), (
            "The same data must give the same quantized model, even after another run. Do not store state of one model "
            "in the calibrator."
        )

    def test_batches_may_be_a_generator_of_uneven_sizes(self, calibrator: Calibrator, task: Task) -> None:
        """They can be read only once, and the last batch is smaller."""
        converted = self.quantized(calibrator, task, iter(torch.split(task.samples, 24)))
        finite = bool(outputs(converted, task.samples).isfinite().all())
        assert finite, "The quantized model's outputs must be finite."

    def test_another_calibrator_object_continues(self, calibrator: Calibrator, task: Task, tmp_path: Path) -> None:
        """State for later steps is stored in the module that `prepare` returned, not in the calibrator."""
        second, third = copy.deepcopy(calibrator), copy.deepcopy(calibrator)
        expected = outputs(self.quantized(calibrator, task), task.samples)
        prepared = calibrator.prepare(task.model, task.spec, task.recipe, training=False)
        with torch.no_grad():
            second.calibrate(prepared, [task.samples])
        converted = third.convert(prepared)
        assert torch.equal(outputs(converted, task.samples), expected), (
            "A second calibrator object must continue where the first one stopped, but gave a different model. Store "
            "state in the module, e.g. with dfq_plugins.quantization.prepared.attach_state."
        )
        coverage = third.describe(converted)
        assert coverage.quantized, "describe() of another calibrator object must list what is quantized."
        artifacts = third.export(converted, task.spec, tmp_path)
        assert artifacts, "export() of another calibrator object must write artifacts."

    def test_deep_copies_work_in_the_later_steps(self, calibrator: Calibrator, task: Task, tmp_path: Path) -> None:
        """Copies of the prepared module, before and after `calibrate`, and of the converted one."""
        expected = outputs(self.quantized(calibrator, task), task.samples)
        prepared = copy.deepcopy(calibrator.prepare(task.model, task.spec, task.recipe, training=False))
        with torch.no_grad():
            calibrator.calibrate(prepared, [task.samples])
        converted = copy.deepcopy(calibrator.convert(copy.deepcopy(prepared)))
        assert torch.equal(outputs(converted, task.samples), expected), (
            "A deep copy of a prepared or converted model must work like the original, but computes something else."
        )
        coverage = calibrator.describe(converted)
        assert coverage.quantized, "describe() must accept a deep copy of a converted model."
        artifacts = calibrator.export(converted, task.spec, tmp_path)
        assert artifacts, "export() must accept a deep copy of a converted model."

    def test_a_model_from_elsewhere_is_a_usage_error(self, calibrator: Calibrator, task: Task) -> None:
        """`calibrate` and `convert` only accept modules returned by `prepare`."""
        with refused("calibrate() of a model that was not prepared", UsageError):
            calibrator.calibrate(task.model, [task.samples])
        with refused("convert() of a model that was not prepared", UsageError):
            calibrator.convert(task.model)

    def test_another_input_shape_is_not_exported(self, calibrator: Calibrator, task: Task, tmp_path: Path) -> None:
        """The input shape must be the one given to `prepare`."""
        converted = self.quantized(calibrator, task)
        other = InputSpec((task.spec.channels + 1, *task.spec.shape[1:]))
        with refused("export() with another input shape", UsageError):
            calibrator.export(converted, other, tmp_path / "artifacts")

    @pytest.mark.parametrize("wrong", ["no batch", "another shape", "not finite"])
    def test_unusable_data_are_refused(self, calibrator: Calibrator, task: Task, wrong: str) -> None:
        """They raise a `DataError` instead of giving a network with meaningless ranges; see `InputSpec.check_batch`."""
        batches = {
            "no batch": [],
            "another shape": [task.samples.new_zeros(4, task.spec.channels + 1, *task.spec.shape[1:])],
            "not finite": [torch.full_like(task.samples, float("nan"))],
        }[wrong]
        with refused(f"Unusable data ({wrong})", DataError):
            self.quantized(calibrator, task, batches)

    def test_an_uncalibrated_model_is_not_converted(self, calibrator: Calibrator, task: Task) -> None:
        """`convert` before `calibrate` has no ranges."""
        prepared = calibrator.prepare(task.model, task.spec, task.recipe, training=False)
        with refused("convert() before calibrate()", UsageError):
            calibrator.convert(prepared)

    def test_an_unsupported_recipe_is_a_usage_error(
        self, calibrator: Calibrator, task: Task, unsupported_recipe: Recipe
    ) -> None:
        """It is raised early, in `prepare`, and names the bit widths."""
        with refused(f"prepare() for {unsupported_recipe}", UsageError) as caught:
            calibrator.prepare(task.model, task.spec, unsupported_recipe, training=False)
        error = str(caught[0])
        bits = str(unsupported_recipe.weight_bits)
        assert bits in error, f"The error must name the requested bit widths, {unsupported_recipe}, got: {error}"

    def test_training_is_refused_or_reaches_the_weights(self, calibrator: Calibrator, task: Task) -> None:
        """`prepare(training=True)` raises a UsageError, or returns a network that gradients flow through."""
        try:
            prepared = calibrator.prepare(task.model, task.spec, task.recipe, training=True)
        except UsageError:
            return
        with torch.no_grad():
            calibrator.calibrate(prepared, [task.samples])
        prepared.train()(task.samples).square().mean().backward()
        moved = [name for name, parameter in prepared.named_parameters() if parameter.grad is not None]
        assert moved, "In a network prepared for training, gradients must reach the weights, but none got any."
        found = outputs(calibrator.convert(prepared), task.samples)
        assert bool(found.isfinite().all()), "After training, convert() must return a network with finite outputs."

    def test_describe_names_layers_that_exist(self, run: QuantizedRun, task: Task) -> None:
        """Weighted layers have their names in the float model, each with the number format of its weight."""
        quantized = run.calibrator.describe(run.converted).quantized
        own = {name for name, _ in task.model.named_modules()}
        assert any(tensor.role == "weight" and tensor.name in own for tensor in quantized), (
            "describe() must list the weight of at least one layer of the float model, got "
            f"{[(tensor.name, tensor.role) for tensor in quantized]}."
        )
        pairs = [(tensor.name, tensor.role) for tensor in quantized]
        repeated = sorted({pair for pair in pairs if pairs.count(pair) > 1})
        assert not repeated, f"describe() must list each tensor once, but lists {repeated} several times."
        known = own | {name for name, _ in run.converted.named_modules()} | _node_names(run.converted)
        strange = [tensor.name for tensor in quantized if tensor.name not in known]
        assert not strange, f"describe() must name existing modules or nodes, but {strange} do not exist."

    def test_artifacts_are_checked_files_and_nothing_else_is_left(
        self, calibrator: Calibrator, task: Task, tmp_path: Path
    ) -> None:
        """Each file has its size and a passed check; no temporary file is left; a second export replaces the first."""
        folder = tmp_path / "new" / "artifacts"
        converted = self.quantized(calibrator, task)
        calibrator.export(converted, task.spec, folder)
        artifacts = calibrator.export(converted, task.spec, folder)
        assert artifacts, "export() must write at least one artifact, got none."
        for artifact in artifacts:
            assert artifact.path.is_file(), f"An artifact must be a file, but {artifact.path} does not exist."
            size = artifact.path.stat().st_size
            assert artifact.size_bytes == size, f"{artifact.path.name} has {size} bytes, not {artifact.size_bytes}."
            assert artifact.checks, f"{artifact.path.name} was not checked. Run it, compare it, and record the check."
            assert all(check.name and check.detail for check in artifact.checks), "A check needs a name and figures."
        found, named = {path for path in folder.rglob("*") if path.is_file()}, {a.path for a in artifacts}
        assert found == named, (
            f"The folder must contain exactly the artifacts, but {sorted(p.name for p in found ^ named)} differ."
        )

    def test_an_artifact_loads_back(self, calibrator: Calibrator, task: Task, tmp_path: Path) -> None:
        """`load` computes what `convert` returned, from at least one artifact; it refuses the others, or all."""
        converted = self.quantized(calibrator, task)
        expected = outputs(converted, task.samples)
        noise = (expected - outputs(task.model, task.samples)).abs().mean().item()
        loaded: list[nn.Module] = []
        for artifact in calibrator.export(converted, task.spec, tmp_path):
            try:
                loaded.append(calibrator.load(artifact.path))
            except UsageError:
                continue
            found = outputs(loaded[-1], task.samples)
            assert found.shape == expected.shape, (
                f"{artifact.path.name} loads back with outputs of the shape {tuple(expected.shape)}, got "
                f"{tuple(found.shape)}."
            )
            deviation = (found - expected).abs().mean().item()
            assert deviation <= self.largest_loaded_deviation * noise, (
                f"{artifact.path.name} loads back as the network that was exported, within "
                f"{self.largest_loaded_deviation:.0%} of the mean difference that quantization makes, {noise:.3g}, but "
                f"differs by {deviation:.3g}."
            )
        if type(calibrator).load is not Calibrator.load:
            assert loaded, "load() takes at least one of the files that export() writes, but refused all of them."

    def test_a_failed_export_leaves_nothing_half_written(
        self, calibrator: Calibrator, task: Task, tmp_path: Path
    ) -> None:
        """If a folder already has the artifact's name, a DfqError says so and no file is left."""
        converted = self.quantized(calibrator, task)
        first, taken = tmp_path / "first", tmp_path / "taken"
        for artifact in calibrator.export(converted, task.spec, first):
            (taken / artifact.path.relative_to(first) / "taken").mkdir(parents=True)
        with refused("export() to a name that a folder has"):
            calibrator.export(converted, task.spec, taken)
        left = [path.name for path in taken.rglob("*") if path.is_file()]
        assert not left, f"A failed export must leave no files, but left {left}. Remove unfinished files."


def _node_names(converted: nn.Module) -> set[str]:
    """Return the names of the nodes in the graph of a traced module, or in the ONNX program that a module runs."""
    program = getattr(converted, "program", None)
    if not isinstance(program, bytes):
        return {node.name for node in getattr(getattr(converted, "graph", None), "nodes", ())}
    import onnx  # noqa: PLC0415  only where a module has a program

    return {node.name for node in onnx.load_from_string(program).graph.node}
