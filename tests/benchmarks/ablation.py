"""Which settings of the inversion calibrate best: each setting changed alone, judged by W4A4 accuracy and divergence.

Two fixed consumers for all, W4A4 in all layers: pytorch-quantization, and Brevitas where it believes the data most,
with a bias correction that gives back all of the shift that the data show.

    python tests/benchmarks/ablation.py resnet20_cifar10            # or: digits
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

import torch
from common import accuracy, load_case, read_result, throughout, write_result

import dfq_plugins

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dfq_plugins import InputSpec

CONSUMERS: dict[str, dict[str, Any]] = {"pytorch-quantization": {}, "brevitas": {"correction_strength": 1.0}}

BASE: dict[str, Any] = {
    "iterations": 100,
    "learning_rate": 0.25,
    "start": "fitted",
    "schedule": "cosine",
    "divergence": "kl",
    "statistics": "batch",
    "step_samples": None,
    "class_weight": 0.0,
    "class_loss": "cross-entropy",
    "blur_weight": 0.0,
    "total_variation_weight": 0.0,
    "l2_weight": 0.0,
    "jitter": 0,
    "flip": False,
    "crop": 1.0,
    "padding": None,
    "clamp": True,
}

CHANGES: dict[str, dict[str, Any]] = {
    "base": {},
    "divergence l2": {"divergence": "l2"},
    "divergence symmetrized-kl": {"divergence": "symmetrized-kl"},
    "not clamped": {"clamp": False},
    "iterations 50": {"iterations": 50},
    "no padding": {"padding": 0},
    "white start": {"start": "white"},
    "iterations 200": {"iterations": 200},
    "learning rate 0.1": {"learning_rate": 0.1},
    "learning rate 0.5": {"learning_rate": 0.5},
    "schedule constant": {"schedule": "constant"},
    "batches of 64": {"step_samples": 64},
    "batches of 64, set statistics": {"step_samples": 64, "statistics": "set"},
    "class cross-entropy 0.01": {"class_weight": 0.01},
    "class cross-entropy 0.1": {"class_weight": 0.1},
    "class cross-entropy 1": {"class_weight": 1.0},
    "class logit 0.01": {"class_weight": 0.01, "class_loss": "logit"},
    "total variation 0.01": {"total_variation_weight": 0.01},
    "blur 0.1": {"blur_weight": 0.1},
    "jitter 2, flip": {"jitter": 2, "flip": True},
    "crop 0.8": {"crop": 0.8},
    "float32": {"precision": "float32"},
    "class 0.1, tv 0.01, jitter, flip": {
        "class_weight": 0.1,
        "total_variation_weight": 0.01,
        "jitter": 2,
        "flip": True,
    },
}


def load_subject(name: str) -> tuple[InputSpec, nn.Module, Tensor, Tensor, Tensor]:
    """Return specification, network, real inputs and test set of the digits network or one of the data pack."""
    if name == "digits":
        from dfq_plugins.demo.data import load_digits
        from dfq_plugins.demo.network import DIGITS_SPEC, digits_network

        train, held_out = load_digits()
        return DIGITS_SPEC, digits_network(), train.inputs, held_out.inputs, held_out.labels
    case, network, real, inputs, labels = load_case(name)
    return case.spec, network, real, inputs, labels


def measure(subject: tuple[InputSpec, nn.Module, Tensor, Tensor, Tensor], data: Any) -> dict[str, float]:
    """Return the W4A4 accuracy after calibration on `data`, by consumer."""
    spec, network, _, inputs, labels = subject
    figures = {}
    for consumer, options in CONSUMERS.items():
        quantized = dfq_plugins.quantize(
            network, data, calibrator=consumer, recipe="w4a4", options=options | throughout(consumer, "w4a4"), spec=spec
        )
        figures[consumer] = accuracy(quantized, inputs, labels)
    return figures


def synthetic_row(
    subject: Any, generator: str, options: dict[str, Any] | None, samples: int, seed: int
) -> dict[str, Any]:
    """Synthesize one set and judge it."""
    spec, network, *_ = subject
    began = time.monotonic()
    data = dfq_plugins.synthesize(
        network, spec, generator=generator, options=options, num_samples=samples, seed=seed, batch_size=256
    )
    seconds = time.monotonic() - began
    layers = data.manifest.divergence
    return {
        **measure(subject, data),
        "divergence": sum(layers.values()) / len(layers),
        "seconds": seconds,
    }


def real_row(subject: Any, samples: int, seed: int) -> dict[str, Any]:
    """Calibrate on a random choice of real inputs."""
    from dfq_plugins.statistics.presentation import best_divergences

    spec, network, real, *_ = subject
    chosen = real[torch.randperm(len(real), generator=torch.Generator().manual_seed(seed))[:samples]]
    _, layers = best_divergences(network, chosen.split(64), spec)
    return {**measure(subject, chosen), "divergence": sum(layers.values()) / len(layers)}


def rows_so_far(name: str) -> dict[str, Any]:
    """Return the rows that the result file holds."""
    rows: dict[str, Any] = (read_result(name) or {}).get("rows", {})
    return rows


def main() -> None:
    """Measure every setting that the result file does not hold yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subject", choices=["resnet20_cifar10", "digits"])
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--test-samples", type=int, help="judge on so many test images; default: all")
    parser.add_argument("--rows", nargs="+", help="only these rows; another process may measure others meanwhile")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    subject = load_subject(arguments.subject)
    subject = (*subject[:3], *(part[: arguments.test_samples] for part in subject[3:]))
    name = f"ablation-{arguments.subject}"
    record = {
        "samples": arguments.samples,
        "seeds": arguments.seeds,
        "base": BASE,
        "test_samples": len(subject[4]),
    }
    jobs: dict[str, Any] = {
        "real data": lambda seed: real_row(subject, arguments.samples, seed),
        "gaussian": lambda seed: synthetic_row(subject, "gaussian", None, arguments.samples, seed),
    }
    for label, change in CHANGES.items():
        options = {**BASE, **change}
        jobs[label] = lambda seed, options=options: synthetic_row(subject, "bns", options, arguments.samples, seed)
    for seed in arguments.seeds:
        for label, job in jobs.items():
            wanted = arguments.rows is None or label in arguments.rows
            if wanted and str(seed) not in rows_so_far(name).get(label, {}):
                figures = job(seed)
                print(f"{seed} {label:36s} {figures}", flush=True)
                rows = rows_so_far(name)  # read again: another process may have added its own
                rows.setdefault(label, {})[str(seed)] = figures
                write_result(name, {**record, "rows": rows})


if __name__ == "__main__":
    main()
