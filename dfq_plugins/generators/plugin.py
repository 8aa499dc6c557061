"""Registers the built-in generators through the public hooks."""

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
    """Return the generators of this package."""
    return (
        GeneratorEntry(
            "gaussian",
            "noise with the mean and standard deviation of the input normalization",
            f"{_HERE}.gaussian:GaussianGenerator",
            options=options.GaussianOptions,
        ),
        GeneratorEntry(
            "inception",
            "inputs optimized from noise for high class logits, with a smoothness prior",
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
            "inputs that match the stored BatchNorm statistics and have high class logits",
            f"{_HERE}.inversion:BatchNormInceptionGenerator",
            options=options.BatchNormInceptionOptions,
        ),
        GeneratorEntry(
            "gdfq",
            "images of given classes that match the stored statistics, from a network trained on the teacher",
            f"{_HERE}.gdfq:GdfqGenerator",
            options=options.GdfqOptions,
        ),
    )


@hookimpl
def dfq_learning_generators() -> Iterable[LearningGeneratorEntry]:
    """Return the generators of this package that learn from a student."""
    return (
        LearningGeneratorEntry(
            "adversarial",
            "for finetune: a network that learns to make inputs on which student and teacher disagree",
            f"{_HERE}.adversarial:AdversarialGenerator",
            options=options.AdversarialOptions,
        ),
        LearningGeneratorEntry(
            "gdfq",
            "for finetune: the gdfq generator, which keeps training alongside the student",
            f"{_HERE}.gdfq:GdfqGenerator",
            options=options.GdfqOptions,
        ),
    )
