"""Measures one cell of the coverage table: one network in one column, in a process that may be ended at any time.

Each thing that is known is written at once, so that a process that is ended leaves what it knew.
"""

from __future__ import annotations

import importlib.metadata
import re
import tempfile
import time
import traceback
import warnings
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from coverage_networks import Network, batch_norms, call
from torch import Tensor, nn
from torch.utils import _pytree

import dfq_plugins
from dfq_plugins.errors import DfqError, first_line
from dfq_plugins.host.registry import get_registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dfq_plugins.types import InputSpec

SYNTHESIS = "synthesize"
STEPS = ("prepare", "calibrate", "convert", "describe", "export")
SYNTHETIC_SAMPLES, ITERATIONS = 8, 5
FRESH_SEED, CALIBRATION_SEED = 1, 0
GRID = 16
"""Cells a side of the map that a detector's boxes are compared on."""

LISTED = 20
"""Layers in float that a record lists by name."""

LONGEST_MESSAGE = 2000
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Journal:
    """What is known about a cell so far, and the step that it is in.

    Args:
        write: called with each new part of the record.
    """

    write: Callable[[dict[str, Any]], None]
    step: str = "accept"
    seconds: dict[str, float] = field(default_factory=dict)
    last_error: BaseException | None = None

    @contextmanager
    def doing(self, step: str) -> Iterator[None]:
        """Time a step; if it fails, the journal stays in it."""
        self.step = step
        self.write({"step": step})
        began = time.monotonic()
        try:
            yield
        except BaseException as error:
            self.last_error = error
            raise
        finally:
            self.seconds[step] = round(time.monotonic() - began, 2)
            self.write({"seconds": self.seconds})
        self.step = f"after {step}"


@dataclass(frozen=True)
class JournaledCalibrator:
    """A calibrator whose steps are timed."""

    calibrator: Any
    journal: Journal

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.calibrator, name)
        return partial(self._run, name, method) if name in STEPS else method

    def _run(self, name: str, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        with self.journal.doing(name):
            return method(*arguments, **options)


@dataclass(frozen=True)
class JournaledRegistry:
    """The installed plugins; the calibrators that it creates are timed."""

    registry: Any
    journal: Journal

    def __getattr__(self, name: str) -> Any:
        return getattr(self.registry, name)

    def create(self, kind: str, name: str, options: object = None) -> Any:
        """Return the plugin; a calibrator with its steps timed."""
        created = self.registry.create(kind, name, options)
        return JournaledCalibrator(created, self.journal) if kind == "calibrator" else created


def measure_framework(network: nn.Module, row: Network, framework: str, journal: Journal) -> None:
    """Quantize a network in one framework, export it, and compare its outputs with float on fresh inputs."""
    with tempfile.TemporaryDirectory() as folder:
        run = dfq_plugins.run_quantization(
            network,
            row.batches(CALIBRATION_SEED),
            calibrator=framework,
            spec=row.spec,
            output=folder,
            registry=JournaledRegistry(get_registry(), journal),  # type: ignore[arg-type]
        )
    floating = [list(one) for one in run.coverage.unquantized]
    journal.write(
        {
            "quantized_layers": len(run.coverage.layers),
            "float_layers": len(floating),
            "float_layers_listed": floating[:LISTED],
            "artifacts": [artifact.format for artifact in run.artifacts],
        }
    )
    with journal.doing("compare"):
        journal.write(agreement(network, run.model, row))
    if run.rejected:
        rejected = run.rejected[0]
        step = "export" if rejected.path is None else "check"
        journal.write({"step": step, "error": error_record(rejected.reason, journal.last_error, network)})


def measure_synthesis(network: nn.Module, spec: InputSpec, journal: Journal) -> None:
    """Synthesize a few samples; from statistics if the network has any."""
    generator, options = ("bns", {"iterations": ITERATIONS}) if batch_norms(network) else ("gaussian", {})
    journal.write({"generator": generator})

    def begun(_event: object) -> None:
        journal.step = SYNTHESIS

    began = time.monotonic()
    data = dfq_plugins.synthesize(
        network, spec, generator=generator, num_samples=SYNTHETIC_SAMPLES, options=options, listeners=[begun]
    )
    for batch in data.batches(SYNTHETIC_SAMPLES):
        spec.check_batch(batch)
    journal.write({"seconds": {SYNTHESIS: round(time.monotonic() - began, 2)}, "samples": len(data)})


def measure(row: Network, network: nn.Module, column: str, write: Callable[[dict[str, Any]], None]) -> None:
    """Write the record of one cell, in parts. Any error of the product is part of it."""
    warnings.simplefilter("ignore")
    journal = Journal(write)
    try:
        if column == SYNTHESIS:
            measure_synthesis(network, row.spec, journal)
        else:
            measure_framework(network, row, column, journal)
        write({"finished": True})
    except Exception as error:  # noqa: BLE001  whatever comes out is the result
        write({"step": journal.step, "error": error_record(str(error), error, network), "finished": True})


@torch.no_grad()
def agreement(reference: nn.Module, quantized: nn.Module, row: Network) -> dict[str, Any]:
    """Return how the outputs agree on fresh inputs: correlation, the same without each output's mean, and decibels."""
    pairs = [(call(reference, batch), call(quantized, batch)) for batch in row.batches(FRESH_SEED)]
    expected, found = (flat_outputs([pair[side] for pair in pairs]) for side in (0, 1))
    if expected.shape != found.shape:
        raise ValueError(f"The outputs have {tuple(found.shape)} values per sample, not {tuple(expected.shape)}.")
    noise, signal = (found - expected).square().mean(), expected.var()
    return {
        "finite": bool(found.isfinite().all()),
        "correlation": _correlation(expected, found),
        "contrast_correlation": _correlation(expected - expected.mean(0), found - found.mean(0)),
        "decibels": _rounded(10 * (signal / noise).log10(), 1),
    }


def flat_outputs(outputs: list[Any]) -> Tensor:
    """Return all floating outputs of all batches as `(samples, values)`."""
    return torch.cat([_flat(_comparable(output)) for output in outputs]).double()


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(len(tensor), -1).float() for tensor in tensors], dim=1)


def _comparable(output: Any) -> list[Tensor]:
    """Return tensors with a batch axis; the boxes of a detector, whose number and order vary, as maps of scores."""
    if isinstance(output, list) and output and isinstance(output[0], dict) and "boxes" in output[0]:
        return [torch.stack([score_map(image["boxes"], image["scores"]) for image in output])]
    tensors = [leaf for leaf in _pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    return [tensor.reshape(-1, 1) if tensor.ndim < 2 else tensor for tensor in tensors if tensor.is_floating_point()]


def score_map(boxes: Tensor, scores: Tensor, size: float = 96.0) -> Tensor:
    """Return the sum of the scores of the boxes over each cell of a grid.

    >>> score_map(torch.tensor([[0.0, 0.0, 96.0, 48.0]]), torch.tensor([0.5])).sum()
    tensor(64.)
    """
    centers = (torch.arange(GRID) + 0.5) * size / GRID
    across = (boxes[:, None, 0] <= centers) & (centers <= boxes[:, None, 2])
    down = (boxes[:, None, 1] <= centers) & (centers <= boxes[:, None, 3])
    return torch.einsum("n,nh,nw->hw", scores, down.float(), across.float())


def _correlation(first: Tensor, second: Tensor) -> float | None:
    pair = torch.stack([first.flatten(), second.flatten()])
    return _rounded(torch.corrcoef(pair)[0, 1], 4)


def _rounded(value: Tensor, digits: int) -> float | None:
    """Return a number that JSON has."""
    return round(float(value), digits) if bool(value.isfinite()) else None


def error_record(message: str, error: BaseException | None, network: nn.Module) -> dict[str, Any]:
    """Return what is known about an error: its text, whose it is, and the lines where it starts."""
    text = message.strip() or type(error).__name__
    frames = [frame for link in _chain(error) for frame in traceback.extract_tb(link.__traceback__)]
    places = [(_short(frame.filename), frame.lineno) for frame in frames]
    of_product = [place for place in places if place[0].startswith(("dfq_plugins", "adapters"))]
    of_network = [place for place in places if place[0].startswith(("torchvision/models", "timm"))]
    root = (_chain(error) or [None])[-1]
    return {
        "type": type(error).__name__,
        "message": text[:LONGEST_MESSAGE],
        "of_product": isinstance(error, DfqError),
        "names_place": names_place(text, network),
        "cause": "" if root is None or root is error else f"{type(root).__name__}: {first_line(root)}"[:300],
        "raised": _line(places),
        "product_line": _line(of_product),
        "network_line": _line(of_network),
    }


def names_place(message: str, network: nn.Module) -> bool:
    """Tell whether a message names a line of code, or a module of the network by its full name."""
    if re.search(r"\.py:\d+", message):
        return True
    words = set(re.findall(r"[\w.]+", message))
    quoted = set(re.findall(r"['\"`]([\w.]+)['\"`]", message))
    names = {name for name, _ in network.named_modules() if name}
    return any(name in (words if "." in name else quoted) for name in names)


def _chain(error: BaseException | None) -> list[BaseException]:
    """Return an error and its causes, the first cause last."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return found


def _line(places: list[tuple[str, int | None]]) -> str:
    return "{}:{}".format(*places[-1]) if places else ""


def _short(path: str) -> str:
    """Return a path without the machine's part."""
    for folder in ("site-packages/", "lib/python3.11/", f"{ROOT}/"):
        if folder in path:
            return path.rpartition(folder)[2]
    return path


def about() -> dict[str, Any]:
    """Return what the cells were measured on."""
    from common import environment

    described = environment()
    with suppress(importlib.metadata.PackageNotFoundError):
        described["versions"]["timm"] = importlib.metadata.version("timm")
    return described


def load_frameworks(columns: list[str]) -> None:
    """Import what the cells of some columns need, once for all processes that are forked from this one."""
    for column in columns:
        if column != SYNTHESIS:
            get_registry().create("calibrator", column)
