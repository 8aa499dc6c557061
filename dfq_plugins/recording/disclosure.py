"""Describes what a record reveals about its data, for anyone about to share it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dfq_plugins.recording.info import RecordInfo


def disclosures(info: RecordInfo) -> RecordInfo:
    """Return the description of the record with `reveals` filled in."""
    return replace(info, reveals=tuple(_sentences(info)))


def _sentences(info: RecordInfo) -> Iterator[str]:
    classes, hidden = len(info.class_counts), info.layers[:-1]
    units = sum(layer.units for layer in hidden)
    yield f"The number of samples in each of the {classes} classes."
    if "top" in info.statistics:
        yield "Mean and covariance of the logits in each class: how similar the classes are to each other."
    if "all" in info.statistics:
        yield (
            f"Mean and covariance of {units} hidden units in each class. Inputs that resemble a typical sample of the "
            "class can be computed from them."
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
            f"A class has only {fewest} samples, not more than a layer has units: its mean and covariance span the "
            "activations of exactly these samples."
        )
    yield from _guarantee(info)


def _guarantee(info: RecordInfo) -> Iterator[str]:
    if info.noise is None:
        yield "No noise was added: there is no privacy guarantee for any sample. Treat the record like the data."
        return
    noise = info.noise
    yield (
        f"Noise was added: the record is ({noise.epsilon:g}, {noise.delta:g})-differentially private with respect to "
        "adding or removing one recorded sample. This does not cover the model itself, which was trained on data "
        "without noise, groups of samples, or features that all samples of a class share."
    )
