"""Test accuracy of a W4A4 student over time, from nothing but the network: synthesis, calibration, training.

    python tests/benchmarks/finetuning_curve.py [--calibrators brevitas pytorch-quantization] [--seed 0]

Writes finetuning-curve.json and docs/images/finetuning.svg. The time that the measuring itself takes is left out.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from common import accuracy, load_case, read_result, write_result
from finetuning import NETWORK, SAMPLES

import dfq_plugins
from dfq_plugins.host.loading import PluginHost
from dfq_plugins.host.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dfq_plugins.types import ProgressEvent

PLOT = Path(__file__).resolve().parents[2] / "docs" / "images" / "finetuning.svg"
RESULT = "finetuning-curve"
EVERY = 50
"""Training steps from one point of the curve to the next."""


class Watching(Registry):
    """A registry whose calibrators remember the model that they prepared."""

    student: nn.Module

    def create(self, kind: Any, name: str, options: object = None) -> Any:
        """Create the plugin; of a calibrator, watch what it prepares."""
        made: Any = super().create(kind, name, options)
        if kind != "calibrator":
            return made
        prepare = made.prepare

        def remembering(*given: Any, **settings: Any) -> nn.Module:
            self.student = prepare(*given, **settings)
            return self.student

        made.prepare = remembering
        return made


class Curve:
    """Test accuracy by seconds of work; the clock stands still while it measures.

    Args:
        registry: knows the student.
        test: inputs and labels.
        began: what `time.monotonic()` was at the start.
    """

    def __init__(self, registry: Watching, test: tuple[Tensor, Tensor], began: float) -> None:
        self.points: list[tuple[float, float]] = []
        self._registry, self._test, self._began, self._paused = registry, test, began, 0.0

    def __call__(self, event: ProgressEvent) -> None:
        """Measure now and then."""
        if event.stage == "finetune" and (event.completed == 1 or event.completed % EVERY == 0):
            self.add(self._registry.student)

    def add(self, model: nn.Module) -> None:
        """Measure a model and put its training state back."""
        now = time.monotonic()
        modes = {module: module.training for module in model.modules()}
        figure = accuracy(model.eval(), *self._test)
        for module, mode in modes.items():
            module.training = mode
        self.points.append((now - self._began - self._paused, figure))
        self._paused += time.monotonic() - now
        print(f"  {self.points[-1][0]:5.0f} s {figure:.2f}", flush=True)


def measure(calibrator: str, seed: int, test_images: int) -> dict[str, Any]:
    """Return the curve of one framework."""
    settings, network, _, inputs, labels = load_case(NETWORK)
    test = inputs[:test_images], labels[:test_images]
    began = time.monotonic()
    data = dfq_plugins.synthesize(network, settings.spec, generator="bns", num_samples=SAMPLES[NETWORK], seed=seed)
    synthesis = time.monotonic() - began
    registry = Watching(PluginHost())
    curve = Curve(registry, test, began)
    given = {"calibrator": calibrator, "recipe": "w4a4", "training": {"seed": seed}}
    run = dfq_plugins.finetune(network, data, registry=registry, listeners=[curve], **given)
    curve.add(run.model)
    about = {"float": accuracy(network, *test), "test_images": len(test[1]), "seed": seed}
    return {"synthesis": synthesis, "points": curve.points, **about}


def draw(record: dict[str, Any]) -> None:
    """Draw a line for each framework."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for calibrator, curve in record["curves"].items():
        minutes, figures = zip(*((seconds / 60, value) for seconds, value in curve["points"]), strict=True)
        (line,) = axes.plot(minutes, figures, marker="o", markersize=3, label=calibrator)
        axes.axvline(curve["synthesis"] / 60, color=line.get_color(), linestyle=":", linewidth=1)
    axes.axhline(curve["float"], color="0.7", linewidth=1, zorder=0)
    axes.annotate("float", (0, curve["float"]), color="0.4", va="bottom")
    axes.set_xlim(left=0)
    axes.set_xlabel("minutes from the start; dotted: the synthesis is done")
    axes.set_ylabel("top-1, %")
    axes.set_title("ResNet-20 to W4A4 without data", loc="left")
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(PLOT, metadata={"Date": None})
    print(f"drew {PLOT.name}")


def main() -> None:
    """Measure what is asked for, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibrators", nargs="+", default=["brevitas", "pytorch-quantization"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--test-images", type=int, default=2500)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for calibrator in arguments.calibrators:
        print(calibrator, flush=True)
        curve = measure(calibrator, arguments.seed, arguments.test_images)
        record = read_result(RESULT) or {"curves": {}}
        record["curves"][calibrator] = curve
        write_result(RESULT, record)
    draw(read_result(RESULT) or {})


if __name__ == "__main__":
    main()
