"""Registers the built-in generators, through the same hook as everybody's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfq_plugins.generators import options
from dfq_plugins.hookspecs import hookimpl
from dfq_plugins.types import GeneratorEntry, LearningGeneratorEntry

if TYPE_CHECKING:
    from collections.abc import Iterable

_HERE = "dfq_plugins.generators"


@hookimpl
def dfq_generators() -> Iterable[GeneratorEntry]:
    """Name the generators of this package."""
    return (
        GeneratorEntry(
            "gaussian",
            "noise with the mean and deviation of the input normalization",
            f"{_HERE}.gaussian:GaussianGenerator",
            options=options.GaussianOptions,
        ),
        GeneratorEntry(
            "inception",
            "class logits raised from noise under a smoothness prior",
            f"{_HERE}.inversion:InceptionGenerator",
            options=options.InceptionOptions,
        ),
        GeneratorEntry(
            "bns",
            "inputs that match the stored BatchNorm statistics",
            f"{_HERE}.inversion:BatchNormGenerator",
            options=options.BatchNormOptions,
        ),
        GeneratorEntry(
            "bns+inception",
            "BatchNorm statistics matched and class logits raised together",
            f"{_HERE}.inversion:BatchNormInceptionGenerator",
            options=options.BatchNormInceptionOptions,
        ),
        LearningGeneratorEntry(
            "adversarial",
            "for finetune: a network that learns to make what student and teacher disagree on",
            f"{_HERE}.adversarial:AdversarialGenerator",
            options=options.AdversarialOptions,
        ),
        LearningGeneratorEntry(
            "gdfq",
            "a network that learns images of given classes with the stored statistics, also beside a student",
            f"{_HERE}.gdfq:GdfqGenerator",
            options=options.GdfqOptions,
            synthesizes=True,
        ),
    )
