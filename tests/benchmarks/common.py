"""What the benchmarks share: the data pack's networks and images, accuracy, and JSON results that tell their origin."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dfq_plugins import InputSpec
from dfq_plugins.data.manifest import MANIFEST_FILE, read_manifest
from dfq_plugins.types import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

RESULTS = Path(__file__).parent / "results"
LIBRARIES = (
    "torch",
    "torchvision",
    "pytorch-quantization",
    "nvidia-modelopt",
    "brevitas",
    "onnxruntime",
    "dfq-plugins",
)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Case:
    """One network of the data pack and how its real data is split: calibration first, evaluation on the rest."""

    network: str
    spec: InputSpec
    calibration_split: str
    calibration_samples: int
    test_split: str
    test_skip: int


CASES = {
    case.network: case
    for case in (
        Case(
            "resnet20_cifar10",
            InputSpec((3, 32, 32), IMAGENET_MEAN, IMAGENET_STD, (0.0, 1.0), 10),
            "cifar10_train4096",
            1024,
            "cifar10_test",
            0,
        ),
        Case(
            "mobilenetv1_075_imagenet",
            InputSpec((3, 224, 224), (127.5,) * 3, (127.5,) * 3, (0.0, 255.0), 1000),
            "imagenet_sample1000_224",
            256,
            "imagenet_sample1000_224",
            256,
        ),
        Case(
            # The feature extractor's own range: int8 with scale 0.5847 and zero point 83.
            "dscnn_kws_mlperftiny",
            InputSpec((1, 49, 10), value_range=(-123.37, 25.73), num_classes=12),
            "kws_test1000",
            200,
            "kws_test1000",
            200,
        ),
        Case("crepe_tiny", InputSpec((1024,), standardized_samples=True), "tones_calib256", 128, "tones_test600", 0),
        Case(
            "ppocr_cls",
            InputSpec((3, 48, 192), (127.5,) * 3, (127.5,) * 3, (0.0, 255.0), 2),
            "textlines_calib128",
            96,
            "textlines_test400",
            0,
        ),
    )
}


def data_folder() -> Path:
    """Return the data pack's folder, which must lie beside the project."""
    folder = Path(__file__).resolve().parents[3] / "shared" / "data"
    if not folder.is_dir():
        sys.exit(f"The benchmarks need the data pack in {folder}.")
    return folder


def networks() -> Any:
    """Import the data pack's network definitions."""
    location = importlib.util.spec_from_file_location("data_pack_networks", data_folder() / "networks.py")
    assert location is not None
    assert location.loader is not None
    module = importlib.util.module_from_spec(location)
    location.loader.exec_module(module)
    return module


def load_case(name: str) -> tuple[Case, nn.Module, Tensor, Tensor, Tensor]:
    """Return the case, its network, real calibration inputs, and the test inputs with labels."""
    case, pack = CASES[name], networks()
    calibration, _ = pack.load_split(case.calibration_split, name)
    inputs, labels = pack.load_split(case.test_split, name)
    return case, pack.build(name), calibration, inputs[case.test_skip :], labels[case.test_skip :]


def top_1(outputs: Tensor, labels: Tensor) -> float:
    """Return how many percent of the labels have the largest output."""
    return 100 * int((outputs.argmax(1) == labels).sum()) / len(labels)


def score_of(network: str) -> Callable[[Tensor, Tensor], float]:
    """Return what the data pack scores a network by, in percent: top-1, or what is usual for its task."""
    return partial(networks().score, network)


@torch.inference_mode()
def accuracy(
    model: Callable[[Tensor], Tensor],
    inputs: Tensor,
    labels: Tensor,
    batch_size: int = 100,
    score: Callable[[Tensor, Tensor], float] = top_1,
) -> float:
    """Return how many percent of the inputs are right by `score`."""
    return score(torch.cat([model(batch) for batch in inputs.split(batch_size)]), labels)


def environment() -> dict[str, Any]:
    """Return versions, commit and machine, for the head of every result file."""
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        processor = lines[0].split(":", 1)[1].strip() if lines else processor
    return {
        "python": platform.python_version(),
        "versions": versions,
        "commit": _commit(),
        "processor": processor,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def _commit() -> str | None:
    """Return the commit that is checked out, with a plus sign if files have changed since; None outside a clone."""
    git = shutil.which("git")
    if git is None:
        return None
    command = [git, "-C", str(RESULTS.parent), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def throughout(calibrator: str, recipe: str) -> dict[str, Any]:
    """Return the options that give the network input and additions the width of all other activations.

    The hardest case, in which data tell most: by default both have 8 bits.
    """
    bits = Recipe.parse(recipe).activation_bits
    return {"input_bits": bits, **({"addition_bits": bits} if calibrator == "brevitas" else {})}


def is_complete(folder: Path) -> bool:
    """Tell whether a finished set lies in the folder."""
    return (folder / MANIFEST_FILE).is_file() and read_manifest(folder).state == "complete"


def write_result(name: str, record: dict[str, Any]) -> None:
    """Write a result file, with its origin, in one step."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({**record, "environment": environment()}, indent=1, sort_keys=True) + "\n")
    temporary.replace(path)
    print(f"wrote {path.name}", flush=True)


def read_result(name: str) -> dict[str, Any] | None:
    """Return a result that an earlier run wrote, or None."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None
