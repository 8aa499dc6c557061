"""What per-tensor weights without equalization do to a depthwise network, and what mends it without data.

python tests/benchmarks/per_tensor.py --data FOLDER_OF_A_SYNTHETIC_SET
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from common import accuracy, load_case, read_result, write_result

import dfq_plugins

NAME = "mobilenetv1_075_imagenet"
PLAIN = {"per_channel": False, "equalization_iterations": 0, "bias_correction": "none"}
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "torch-ao, per tensor": ("torch-ao", {"engine": "onednn", "per_channel": False}),
    "torch-ao, per channel": ("torch-ao", {"engine": "onednn", "per_channel": True}),
    "brevitas, per tensor": ("brevitas", PLAIN),
    "brevitas, per tensor, equalized": ("brevitas", {**PLAIN, "equalization_iterations": 20}),
    "brevitas, per tensor, bias corrected": ("brevitas", {**PLAIN, "bias_correction": "layer"}),
    "brevitas, per tensor, equalized and bias corrected": (
        "brevitas",
        {**PLAIN, "equalization_iterations": 20, "bias_correction": "layer"},
    ),
    "brevitas, per tensor, equalized and bias corrected, ranges of 99.7 %": (
        "brevitas",
        {**PLAIN, "equalization_iterations": 20, "bias_correction": "layer", "percentile": 99.7},
    ),
    "brevitas, per channel": ("brevitas", {**PLAIN, "per_channel": True}),
}


def main() -> None:
    """Measure every setting on one synthetic set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    _, network, _, inputs, labels = load_case(NAME)
    data = dfq_plugins.SyntheticDataset.open(arguments.data)
    rows: dict[str, float] = (read_result("per-tensor") or {}).get("rows", {})
    rows["float"] = accuracy(network, inputs, labels)
    for label, (calibrator, options) in SETTINGS.items():
        if label in rows:
            continue
        quantized = dfq_plugins.quantize(network, data, calibrator=calibrator, recipe="w8a8", options=options)
        rows[label] = accuracy(quantized, inputs, labels)
        print(f"{label:52s} {rows[label]:6.2f}", flush=True)
        write_result("per-tensor", {"rows": rows, "samples": len(data), "test_samples": len(labels)})


if __name__ == "__main__":
    main()
