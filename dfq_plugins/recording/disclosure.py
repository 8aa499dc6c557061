"""What a record tells of the data that it was made from, in words, for whoever is about to give it away."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dfq_plugins.recording.info import RecordInfo


def disclosures(info: RecordInfo) -> RecordInfo:
    """Return the record's description with what it reveals filled in."""
    return replace(info, reveals=tuple(_sentences(info)))


def _sentences(info: RecordInfo) -> Iterator[str]:
    classes, hidden = len(info.class_counts), info.layers[:-1]
    units = sum(layer.units for layer in hidden)
    yield f"How many samples each of the {classes} classes has."
    if "top" in info.statistics:
        yield "Mean and covariance of the logits in each class: how the classes resemble one another."
    if "all" in info.statistics:
        yield (
            f"Mean and covariance of {units} hidden units in each class. Inputs can be computed from them that "
            "resemble a typical sample of the class."
        )
    if {"spectral", "spectral-pairs"} & set(info.statistics):
        yield (
            "Mean and covariance of the strongest spectral coefficients of all layers together in each class. Inputs "
            "computed from them resemble samples more closely than those from any other statistic."
        )
    if any(math.prod(layer.shape) == math.prod(info.input_spec.shape) for layer in hidden):
        yield "A recorded layer is as large as the input: its class means may be mean images of the data."
    fewest = min(info.class_counts)
    if info.noise is None and fewest <= max(layer.units for layer in info.layers):
        yield (
            f"A class has only {fewest} samples, no more than a layer has units: mean and covariance then span the "
            "activations of these very samples."
        )
    yield from _guarantee(info)


def _guarantee(info: RecordInfo) -> Iterator[str]:
    if info.noise is None:
        yield "No noise was added: there is no guarantee for any single sample. Treat the record like the data."
        return
    noise = info.noise
    yield (
        f"Noise was added: the record is ({noise.epsilon:g}, {noise.delta:g})-differentially private for one sample "
        "more or less among those recorded. This says nothing about the model itself, which was trained on data "
        "without noise, nor about groups of samples, nor about what all samples of a class have in common."
    )
