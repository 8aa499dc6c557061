"""Does the score of `dfq inspect` predict accuracy after calibration? Sets of many kinds and sizes, over networks.

    python tests/benchmarks/quality.py resnet20_cifar10 --work FOLDER [--without NAME ...]

Each set calibrates one framework at one recipe, and is inspected; accuracies that the result file holds already are not
measured again. Synthetic sets are kept in FOLDER.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from common import accuracy, read_result, throughout, write_result
from quality_sets import TEST_SAMPLES, make_set, set_names, subject
from scipy import stats

import dfq_plugins

if TYPE_CHECKING:
    from quality_sets import Subject

    from dfq_plugins.quality.inspection import Inspection

CALIBRATOR = "brevitas"
"""The framework whose accuracy depends most on the data: its bias correction believes the set."""

RECIPES = {"resnet20_cifar10": "w4a4", "resnet56_cifar10": "w4a4", "dscnn_kws_mlperftiny": "w6a6", "digits": "w3a3"}
"""The narrowest recipe at which real data still leave the network something to lose."""


def result_name(network: str) -> str:
    """Return the name of a network's result file."""
    return f"quality-{network}"


def so_far(network: str) -> dict[str, Any]:
    """Return what the result file holds."""
    return read_result(result_name(network)) or {"network": network, "sets": {}}


def figures(found: Inspection) -> dict[str, Any]:
    """Return what the study keeps of an inspection."""
    record = found.as_dict()
    del record["layers"], record["label_counts"], record["notes"], record["reason"]
    ranged = [layer.range_octaves for layer in found.layers if layer.range_octaves is not None]
    record["worst_divergence"] = max(layer.divergence for layer in found.layers)
    record["worst_range_error"] = max(map(abs, ranged))
    record["layers"] = [[layer.name, layer.divergence, layer.range_octaves] for layer in found.layers]
    return record


def measure(about: Subject, data: torch.Tensor, recipe: str) -> float:
    """Return the top-1 accuracy in percent after calibration on the set."""
    given = {"calibrator": CALIBRATOR, "recipe": recipe, "options": throughout(CALIBRATOR, recipe)}
    run = dfq_plugins.run_quantization(about.network, data, spec=about.spec, **given)
    return accuracy(run.model, about.inputs, about.labels)


def study(network: str, work: Path, *, without: list[str], inspect_only: bool) -> None:
    """Fill in what a network's result file does not hold yet."""
    about, recipe = subject(network), RECIPES[network]
    record = so_far(network)
    record |= {"recipe": recipe, "calibrator": CALIBRATOR, "test_samples": min(TEST_SAMPLES, len(about.labels))}
    record.setdefault("float", accuracy(about.network, about.inputs, about.labels))
    for name in [name for name in set_names(about) if name not in without]:
        entry = record["sets"].setdefault(name, {})
        if inspect_only and "accuracy" not in entry:
            continue
        data = make_set(about, name, work)
        entry["inspection"] = figures(dfq_plugins.inspect(data, about.network, spec=about.spec))
        if "accuracy" not in entry:
            entry["accuracy"] = measure(about, data, recipe)
            write_result(result_name(network), record)
        print(f"{name:45s} {entry['accuracy']:6.2f}  score {entry['inspection']['score']:5.1f}", flush=True)
    record["sets"] = {name: entry for name, entry in record["sets"].items() if "accuracy" in entry}
    record["spearman"] = correlations(record["sets"])
    write_result(result_name(network), record)


def correlations(sets: dict[str, Any]) -> dict[str, float]:
    """Return the rank correlation of each figure with the accuracy over all sets."""
    accuracies = [entry["accuracy"] for entry in sets.values()]
    names = [key for key, value in next(iter(sets.values()))["inspection"].items() if isinstance(value, int | float)]
    found = {}
    for name in names:
        values = [entry["inspection"][name] for entry in sets.values()]
        if None not in values and len(set(values)) > 1:
            found[name] = float(stats.spearmanr(values, accuracies).statistic)
    return found


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=list(RECIPES))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--without", nargs="+", default=[], metavar="NAME", help="sets that take too long to make")
    parser.add_argument("--inspect-only", action="store_true", help="judge the measured sets anew, measure nothing")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    study(arguments.network, arguments.work, without=arguments.without, inspect_only=arguments.inspect_only)
    for name, value in so_far(arguments.network)["spearman"].items():
        print(f"{name:20s} {value:6.3f}")


if __name__ == "__main__":
    main()
