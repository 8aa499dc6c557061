"""`load_quantized`: exported files load back in a fresh process, and what cannot be loaded is refused with a reason."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
import zipfile
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import load_file, save_file
from torch import nn

from dfq_plugins.errors import DataError, PluginError, UsageError
from dfq_plugins.hookspecs import hookimpl
from dfq_plugins.host.registry import build_registry
from dfq_plugins.quantization.load import load_quantized
from dfq_plugins.quantization.onnx_module import OnnxModule, load_onnx
from dfq_plugins.quantization.run import run_quantization
from dfq_plugins.types import CalibratorEntry
from pipeline_plugins import Recorder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dfq_plugins.host.registry import Registry
    from dfq_plugins.quantization.result import QuantizationRun
    from dfq_plugins.types import InputSpec

DATA = torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(2)).clamp(-2, 2)
ENDINGS = (
    r"(?=.*\.torchscript\.pt \(torch-ao\))(?=.*_qdq\.onnx \(pytorch-quantization\))"
    r"(?=.*\.modelopt\.onnx \(modelopt\)).*\.qcdq\.onnx \(brevitas\).*"
)
FRAMEWORKS = ["torch-ao", "pytorch-quantization", "brevitas", "onnxruntime"]
MODULES = {"torch-ao": "", "pytorch-quantization": "pytorch_quantization", "brevitas": "brevitas", "onnxruntime": ""}

LOAD = """
import pickle, sys
import dfq_plugins as dfq
from dfq_plugins.host.registry import get_registry
from safetensors.torch import load_file, save_file

def refuse(*_, **__):
    raise AssertionError("pickle was used")

calibrator, inputs, outputs, *paths = sys.argv[1:]
get_registry().create("calibrator", calibrator)  # the imports of the framework are its own affair
pickle.load = pickle.loads = pickle.Unpickler = pickle._Unpickler = refuse
found = {}
for path in paths:
    model = dfq.load_quantized(path)
    assert not model.training
    found[path] = model(load_file(inputs)["inputs"])
save_file(found, outputs)
print(*(name for name in ("brevitas", "pytorch_quantization", "onnxruntime") if name in sys.modules))
"""


@pytest.fixture
def quantized(tiny_network: nn.Module, tiny_spec: InputSpec, tmp_path: Path) -> Callable[..., QuantizationRun]:
    def run(calibrator: str, recipe: str = "w8a8", **options: object) -> QuantizationRun:
        return run_quantization(
            tiny_network,
            DATA,
            calibrator=calibrator,
            recipe=recipe,
            spec=tiny_spec,
            options=options,
            output=tmp_path / "artifacts",
        )

    return run


@torch.no_grad()
def outputs(model: nn.Module, inputs: torch.Tensor = DATA) -> torch.Tensor:
    found: torch.Tensor = model(inputs)
    return found


def assert_same(found: torch.Tensor, expected: torch.Tensor, path: Path) -> None:
    """Require TorchScript to be equal, and ONNX to name the same classes and stay within a step of 8 bits."""
    if path.suffix == ".pt":
        assert torch.equal(found, expected)
        return
    assert torch.equal(found.argmax(1), expected.argmax(1))
    torch.testing.assert_close(found, expected, rtol=0, atol=float(expected.abs().max()) / 127)


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("calibrator", FRAMEWORKS)
def test_files_load_in_a_fresh_process_without_pickle(
    quantized: Callable[..., QuantizationRun], calibrator: str, tmp_path: Path
) -> None:
    run = quantized(calibrator)
    paths = [artifact.path for artifact in run.artifacts]
    save_file({"inputs": DATA}, tmp_path / "inputs")
    arguments = [calibrator, tmp_path / "inputs", tmp_path / "outputs", *paths]
    completed = subprocess.run(
        [sys.executable, "-c", LOAD, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert completed.returncode == 0, completed.stderr
    found = load_file(tmp_path / "outputs")
    assert set(found) == set(map(str, paths))
    assert len(paths) == (2 if calibrator == "brevitas" else 1)
    for path in paths:
        assert_same(found[str(path)], outputs(run.model), path)
    others = {module for name, module in MODULES.items() if module and name != calibrator}
    assert not others & set(completed.stdout.split())


@pytest.mark.parametrize("recipe", ["w8a8", "w4a4"])
@pytest.mark.parametrize("engine", ["x86", "onednn", "qnnpack"])
def test_torchscript_is_packed_for_the_engine_of_its_export(
    quantized: Callable[..., QuantizationRun], engine: str, recipe: str
) -> None:
    run = quantized("torch-ao", recipe, engine=engine)
    before = torch.backends.quantized.engine
    loaded = load_quantized(run.artifacts[0].path)
    assert torch.backends.quantized.engine == before
    assert torch.equal(outputs(loaded), outputs(run.model))


def test_an_engine_that_torch_lacks_is_named(quantized: Callable[..., QuantizationRun], tmp_path: Path) -> None:
    (artifact,) = quantized("torch-ao").artifacts
    other = tmp_path / "other.torchscript.pt"
    with zipfile.ZipFile(artifact.path) as source, zipfile.ZipFile(other, "w") as target:
        for name in source.namelist():
            target.writestr(name, b"tpu" if name.endswith("/extra/dfq_engine") else source.read(name))
    with pytest.raises(UsageError, match=r"other\.torchscript\.pt are packed for the engine 'tpu', which this build"):
        load_quantized(other)


@pytest.mark.filterwarnings("ignore:`torch.jit.(script|save)` is deprecated")
def test_a_program_from_elsewhere_is_packed_for_the_engine_of_the_process(tmp_path: Path) -> None:
    script: Any = torch.jit.script
    path = tmp_path / "other.torchscript.pt"
    script(nn.Linear(192, 4).eval()).save(str(path))
    assert outputs(load_quantized(path), DATA.flatten(1)).shape == (48, 4)


def test_a_fixed_batch_size_takes_its_multiples(quantized: Callable[..., QuantizationRun]) -> None:
    run = quantized("pytorch-quantization", batch_size=8)
    loaded = load_quantized(run.artifacts[0].path)
    assert_same(outputs(loaded), outputs(run.model), run.artifacts[0].path)
    for count in (12, 0):
        message = rf"must have the shape \(a multiple of 8, 3, 8, 8\), got \({count}, 3, 8, 8\)"
        with pytest.raises(DataError, match=message):
            loaded(DATA[:count])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.qonnx.onnx", "model.qcdq.onnx"])
def test_brevitas_files_take_any_batch_size(
    quantized: Callable[..., QuantizationRun], name: str, tmp_path: Path
) -> None:
    run = quantized("brevitas", "w4a4")
    loaded = load_quantized(str(tmp_path / "artifacts" / name))
    for inputs in (DATA[:1], DATA[:7]):
        assert_same(outputs(loaded, inputs), outputs(run.model, inputs), Path(name))
    with pytest.raises(DataError, match=r"must have the shape \(samples, 3, 8, 8\), got \(48, 3, 8, 4\)\. Give inputs"):
        loaded(DATA[..., :4])
    with pytest.raises(DataError, match=r"got \(3, 8, 8\)"):
        loaded(DATA[0])


def identity(inputs: int = 1, outputs: int = 1) -> bytes:
    """Return a program that hands its first input through to all outputs."""
    ins, outs = [f"in{index}" for index in range(inputs)], [f"out{index}" for index in range(outputs)]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["in0"], [name]) for name in outs],
        "identity",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in ins],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in outs],
    )
    program: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    ).SerializeToString()
    return program


def test_an_onnx_module_can_be_copied_and_returns_what_the_program_does() -> None:
    inputs = torch.randn(3, 2, dtype=torch.double, requires_grad=True)
    module = copy.deepcopy(OnnxModule(identity(outputs=2), exact=False))
    assert not module.exact
    found = module(inputs)
    first, second = found["out0"], found["out1"]
    assert torch.equal(first, inputs.detach().float())
    assert torch.equal(second, first)
    assert not first.requires_grad


def test_an_onnx_module_takes_several_inputs_by_name_and_in_order() -> None:
    module = OnnxModule(identity(inputs=2))
    first, second = torch.rand(4, 2), torch.rand(4, 2)
    for outputs in (module(first, second), module(in1=second, in0=first), module({"in1": second, "in0": first})):
        assert torch.equal(outputs, first)


@pytest.mark.parametrize("given", [(torch.zeros(1, 2),), (torch.zeros(1, 2),) * 3])
def test_an_onnx_module_needs_each_of_its_inputs(given: tuple[torch.Tensor, ...]) -> None:
    with pytest.raises(DataError, match=r"The program takes the inputs in0, in1, got .*Give each of them once"):
        OnnxModule(identity(inputs=2))(*given)


def test_a_folder_with_one_artifact_stands_for_it(quantized: Callable[..., QuantizationRun], tmp_path: Path) -> None:
    run = quantized("torch-ao")
    (tmp_path / "artifacts" / "notes.txt").write_text("mine")
    assert torch.equal(outputs(load_quantized(tmp_path / "artifacts")), outputs(run.model))


def test_a_folder_with_several_artifacts_lists_them(tmp_path: Path) -> None:
    for name in ("model.qonnx.onnx", "model.qcdq.onnx"):
        (tmp_path / name).touch()
    message = r"must hold exactly one artifact, but holds model\.qcdq\.onnx, model\.qonnx\.onnx\. Give one of the files"
    with pytest.raises(UsageError, match=message):
        load_quantized(tmp_path)


def test_a_folder_without_artifacts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"must hold a file whose name ends with {ENDINGS}, but there is none\. Give"):
        load_quantized(tmp_path)


@pytest.mark.parametrize("given", ["model_qdq.onnx.rejected", "model_qdq.onnx", "."])
def test_a_rejected_file_is_refused(tmp_path: Path, given: str) -> None:
    (tmp_path / "model_qdq.onnx.rejected").write_bytes(identity())
    message = r"Only a file that passed its check can be loaded, but .*model_qdq\.onnx\.rejected was rejected when"
    with pytest.raises(UsageError, match=message):
        load_quantized(tmp_path / given)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is needed, but there is no .*/model_qdq\.onnx\. Export it first\."):
        load_quantized(tmp_path / "model_qdq.onnx")


def test_an_unknown_ending_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(identity())
    with pytest.raises(UsageError, match=rf"must end with {ENDINGS}, got model\.onnx\. Give it the name"):
        load_quantized(tmp_path / "model.onnx")


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("other.txt", "no program")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content", [b"", b"damaged" * 20, identity()[:30], zipped()], ids=["empty", "text", "cut", "zip"]
)
@pytest.mark.parametrize("ending", [".torchscript.pt", "_qdq.onnx", ".qonnx.onnx", ".qcdq.onnx"])
def test_a_damaged_file_is_refused(tmp_path: Path, ending: str, content: bytes) -> None:
    path = tmp_path / f"model{ending}"
    path.write_bytes(content)
    kind = "TorchScript archive" if path.suffix == ".pt" else "ONNX file of a quantized model"
    with pytest.raises(DataError, match=rf"must be a readable {kind}, but: .+\. Export it again\."):
        load_quantized(path)


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must be a readable ONNX file of a quantized model, but: .*No such file"):
        load_onnx(tmp_path / "gone.onnx")


def test_a_file_may_be_rewritten_before_it_runs(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(identity())

    def negated(model: Any) -> Any:
        assert isinstance(model, onnx.ModelProto)
        model.graph.node[0].op_type = "Neg"
        return model

    assert torch.equal(load_onnx(tmp_path / "model.onnx", rewrite=negated)(torch.ones(1, 2)), -torch.ones(1, 2))


class Loader(Recorder):
    """Loads any file, as the name that it has."""

    def load(self, path: Path) -> nn.Module:
        module = nn.Identity()
        module.path = path
        return module


def registry_of(monkeypatch: pytest.MonkeyPatch, *entries: CalibratorEntry) -> Registry:
    module = ModuleType("loading_plugin")

    @hookimpl
    def dfq_calibrators() -> Iterable[CalibratorEntry]:
        return entries

    vars(module).update(dfq_calibrators=dfq_calibrators, Loader=Loader, Recorder=Recorder)
    monkeypatch.setitem(sys.modules, "loading_plugin", module)
    return build_registry(entry_points=[EntryPoint("loading", "loading_plugin", "dfq_plugins")], strict=True)


def entry(name: str, *suffixes: str, factory: str = "Loader", requires: tuple[str, ...] = ()) -> CalibratorEntry:
    return CalibratorEntry(
        name, "", f"loading_plugin:{factory}", requires, f"dfq-plugins[{name}]", artifact_suffixes=suffixes
    )


def test_the_longest_ending_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "net.tiny.bin").touch()
    registry = registry_of(
        monkeypatch, entry("absent", ".bin", requires=("no_such_framework",)), entry("a", ".tiny.bin")
    )
    assert load_quantized(tmp_path, registry=registry).path == tmp_path / "net.tiny.bin"


def test_a_missing_framework_says_the_pip_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "net.bin").touch()
    registry = registry_of(monkeypatch, entry("absent", ".bin", requires=("no_such_framework",)))
    message = r'Calibrator \'absent\' needs no_such_framework .* Run: pip install "dfq-plugins\[absent\]"'
    with pytest.raises(PluginError, match=message):
        load_quantized(tmp_path / "net.bin", registry=registry)


def test_two_owners_of_one_ending_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "net.bin").touch()
    registry = registry_of(monkeypatch, entry("one", ".bin"), entry("two", ".bin"))
    message = r"Only one calibrator may load \*\.bin, but several do: calibrator 'one' .* and calibrator 'two' .* Unin"
    with pytest.raises(PluginError, match=message):
        load_quantized(tmp_path / "net.bin", registry=registry)


def test_a_calibrator_need_not_load_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "net.bin").touch()
    registry = registry_of(monkeypatch, entry("recorder", ".bin", factory="Recorder"))
    with pytest.raises(UsageError, match=r"Recorder does not load the files that it exports, got .*net\.bin\. Open it"):
        load_quantized(tmp_path / "net.bin", registry=registry)


def test_without_loading_calibrators_the_error_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "net.bin").touch()
    with pytest.raises(UsageError, match="an ending that a calibrator knows, and no installed one loads files, got"):
        load_quantized(tmp_path / "net.bin", registry=registry_of(monkeypatch, entry("recorder")))


@pytest.mark.parametrize("suffixes", [".bin", ("",), (1,)])
def test_endings_are_a_tuple_of_texts(monkeypatch: pytest.MonkeyPatch, suffixes: Any) -> None:
    wrong = CalibratorEntry("wrong", "", "loading_plugin:Loader", artifact_suffixes=suffixes)
    with pytest.raises(PluginError, match=r"artifact_suffixes must be a tuple of name endings, got .* for 'wrong'"):
        registry_of(monkeypatch, wrong)
