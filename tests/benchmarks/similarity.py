"""Does the divergence rank data sets as a person would? Real CIFAR-10 and its synthetic twin against strangers.

python tests/benchmarks/similarity.py --synthetic FOLDER_OF_A_SYNTHETIC_SET
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from common import data_folder, load_case, networks, write_result

import dfq_plugins
from dfq_plugins.data.readers import normalize
from dfq_plugins.quality.similarity import rank

NAME = "resnet20_cifar10"
SAMPLES = 1000


def main() -> None:
    """Rank the sets and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--synthetic", type=Path, required=True)
    arguments = parser.parse_args()
    case, network, train, test, _ = load_case(NAME)
    synthetic = dfq_plugins.SyntheticDataset.open(arguments.synthetic)
    imagenet, _ = networks().load_split("imagenet_sample1000_224", "mobilenetv1_075_imagenet")
    small = F.interpolate((imagenet + 1) * 127.5, size=(32, 32), mode="bilinear", antialias=True).clamp(0, 255)
    digits = torch.from_numpy(np.load(data_folder() / "mnist.npz")["x_test"][:SAMPLES]).float()[:, None]
    padded = F.pad(digits, (2, 2, 2, 2)).expand(-1, 3, -1, -1)
    rng = torch.Generator().manual_seed(0)
    sources = {
        "CIFAR-10, training images": train[:SAMPLES],
        "CIFAR-10, test images": test[:SAMPLES],
        "synthetic (bns)": synthetic.inputs(SAMPLES),
        "ImageNet sample at 32x32": normalize(small, case.spec),
        "MNIST in three channels": normalize(padded, case.spec),
        "Gaussian noise": torch.randn(SAMPLES, 3, 32, 32, generator=rng),
        "uniform noise": normalize(torch.rand(SAMPLES, 3, 32, 32, generator=rng) * 255, case.spec),
    }
    batches = {name: inputs.split(100) for name, inputs in sources.items()}
    rows = rank(network, case.spec, batches)
    plain = {row.name: row.divergence for row in rank(network, case.spec, batches, augmentation="none")}
    for row in rows:
        shown = f"{row.augmentation:12s} {row.worst_layer}  plain {plain[row.name]:.4f}"
        print(f"{row.name:28s} {row.divergence:.4f} {shown}")
    write_result("similarity", {"rows": [{**asdict(row), "plain": plain[row.name]} for row in rows]})


if __name__ == "__main__":
    main()
