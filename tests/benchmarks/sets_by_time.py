"""How good a set of 1,024 images is after how many seconds: ours and the peer's, one fixed consumer, ResNet-20.

    python tests/benchmarks/sets_by_time.py --work FOLDER --peer FOLDER_FOR_ITS_ENVIRONMENT

The peer knows no budget of time. Its own default set is made first; what an iteration took there says how many
iterations of all images a budget holds. Where a budget holds all of its iterations for some whole batches, such a
smaller set is made too, and the better of the two counts. Seconds are those of the call that makes the set, in a
process that has loaded the network; ours include the checks, the quality record and the files, with the step's
compilation cached as on a machine that has run it before, and once without.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from common import accuracy, load_case, read_result, throughout, write_result
from peers.mct import ModelCompressionToolkit, load_images

import dfq_plugins
from dfq_plugins.statistics.batch_norm import layer_divergences
from dfq_plugins.statistics.presentation import best_divergences

if TYPE_CHECKING:
    from torch import Tensor, nn

NETWORK, RESULT = "resnet20_cifar10", "sets-by-time"
SAMPLES, PEER_ITERATIONS, PEER_BATCH = 1024, 500, 32
BUDGETS = (30.0, 60.0, 300.0)
CONSUMERS: dict[str, dict[str, Any]] = {"pytorch-quantization": {}, "brevitas": {"correction_strength": 1.0}}
"""Calibrators with their options; Brevitas gives back all of the shift that the data show: it believes them most."""


class Race:
    """The network, its test set, and the results so far, written after each set.

    Args:
        work: folder for the sets.
        peer: folder of the peer's environment.
        threads: processor threads for either side.
    """

    def __init__(self, work: Path, peer: Path, threads: int) -> None:
        self.work, self.peer, self.threads = work, peer, threads
        self.case, self.network, _, self.inputs, self.labels = load_case(NETWORK)
        self.record: dict[str, Any] = read_result(RESULT) or {"sets": {}, "samples": SAMPLES}

    def judge(self, name: str, seconds: float, images: Tensor, **about: Any) -> dict[str, Any]:
        """Record the time, divergence and accuracy of a set; return them."""
        plain = layer_divergences(self.network.eval(), images.split(256), self.case.spec)
        shown, layers = best_divergences(self.network, images.split(256), self.case.spec)
        entry = {
            **about,
            "seconds": seconds,
            "samples": len(images),
            "shown": shown,
            "divergence": sum(layers.values()) / len(layers),
            "plain divergence": sum(plain.values()) / len(plain),
            "layers": dict(layers),
            "accuracy": {consumer: self._accuracy(consumer, images) for consumer in CONSUMERS},
        }
        self.record["sets"][name] = entry
        write_result(RESULT, self.record)
        print(f"{name:24s} {seconds:7.1f} s  divergence {entry['divergence']:.4f}  {entry['accuracy']}", flush=True)
        return entry

    def _accuracy(self, consumer: str, images: Tensor) -> float:
        options = CONSUMERS[consumer] | throughout(consumer, "w4a4")
        quantized: nn.Module = dfq_plugins.quantize(
            self.network, images, calibrator=consumer, recipe="w4a4", options=options, spec=self.case.spec
        )
        return accuracy(quantized, self.inputs, self.labels)

    def done(self, name: str) -> bool:
        """Tell whether a set has been judged already."""
        return name in self.record["sets"]

    def ours(self, name: str, seed: int, **settings: Any) -> None:
        """Make one set of ours and judge it."""
        if self.done(name):
            return
        began = time.monotonic()
        data = dfq_plugins.synthesize(
            self.network, self.case.spec, num_samples=SAMPLES, seed=seed, threads=self.threads, **settings
        )
        seconds = time.monotonic() - began
        self.judge(name, seconds, data.inputs(), seed=seed)

    def peers(self, name: str, images: int, iterations: int | None) -> dict[str, Any]:
        """Make one set of the peer's and judge it."""
        if not self.done(name):
            path = self.work / f"{name.replace(' ', '-')}.pt"
            with ModelCompressionToolkit(self.peer, NETWORK, self.threads) as toolkit:
                seconds = toolkit.make(images, iterations, path)
            self.judge(name, seconds, load_images(path), iterations=iterations or PEER_ITERATIONS)
        entry: dict[str, Any] = self.record["sets"][name]
        return entry

    def peers_within(self, budget: float, image_iteration: float) -> None:
        """Make the peer's sets that a budget holds: fewer iterations, or fewer images."""
        iterations = max(1, int(budget / (SAMPLES * image_iteration)))
        self.peers(f"peer {budget:g} s", SAMPLES, iterations)
        images = int(budget / (PEER_ITERATIONS * image_iteration)) // PEER_BATCH * PEER_BATCH
        if images:
            self.peers(f"peer {budget:g} s, {images} images", images, None)


def main() -> None:
    """Make and judge the sets that the result file does not hold yet, ours first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--peer", type=Path, default=Path("peer-environment"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    race = Race(arguments.work, arguments.peer, arguments.threads)
    with tempfile.TemporaryDirectory() as cache:  # an empty compile cache: the first run on a machine
        kept = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        race.ours("ours, first run", 0)
        os.environ.pop("TORCHINDUCTOR_CACHE_DIR") if kept is None else os.environ.update(TORCHINDUCTOR_CACHE_DIR=kept)
    torch.compiler.reset()
    for seed in arguments.seeds:
        race.ours(f"ours, seed {seed}", seed)
        for budget in BUDGETS:
            race.ours(f"ours {budget:g} s, seed {seed}", seed, max_seconds=budget)
    default = race.peers("peer", SAMPLES, None)
    image_iteration = default["seconds"] / (SAMPLES * PEER_ITERATIONS)
    for budget in BUDGETS:
        race.peers_within(budget, image_iteration)


if __name__ == "__main__":
    main()
