"""The sections that reports of different commands share, each built from the records that the pipeline returns."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import TYPE_CHECKING

from dfq_plugins.quantization.formats import format_in_words
from dfq_plugins.report.content import Facts, LayerPlot, Samples, Section, Table
from dfq_plugins.types import NetworkSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from dfq_plugins.types import Artifact, Coverage, RejectedArtifact, Specification

LIBRARIES = (
    "dfq-plugins",
    "torch",
    "torchvision",
    "numpy",
    "pytorch-quantization",
    "brevitas",
    "nvidia-modelopt",
    "onnx",
    "onnxruntime",
    "qonnx",
)
"""Distributions whose versions decide what a run gives."""

KIBIBYTE = 1024


def sample_section(sets: Sequence[Samples]) -> Section:
    """Return the section that shows what the samples look like."""
    text = (
        "Each picture is one input of the network, shown as raw values. Synthetic samples are not meant to please the "
        "eye: they are made so that every layer sees values in the ranges it saw in training, which is what "
        "calibration needs. A number below a picture is its class: the one that was asked for, or the one that the "
        "network sees in it."
    )
    return Section("What the samples look like", (text,), tuple(sets))


def divergence_section(layers: Sequence[str], series: Mapping[str, Sequence[float]], caption: str = "") -> Section:
    """Return the section that plots how far each layer's statistics are from those recorded in training.

    Args:
        layers: names of the BatchNorm layers from input to output.
        series: one divergence per layer for each kind of data.
        caption: one sentence on what to see.
    """
    text = (
        "A trained BatchNorm layer remembers the mean and variance of everything it saw in training. The plot shows "
        "how far the statistics of each kind of data are from that memory (Kullback-Leibler divergence of two "
        "Gaussians, mean over channels): further left is closer to the training data."
    )
    values = tuple((name, tuple(points)) for name, points in series.items())
    return Section(
        "How close it comes to the training data",
        (text,),
        (LayerPlot(tuple(layers), values, "divergence (log scale, lower is better)", caption),),
    )


def coverage_table(title: str, coverage: Coverage) -> Table:
    """Return the table of the quantized tensors of one model, and of what stays in float."""
    rows = tuple(
        (tensor.name, tensor.kind, tensor.role, format_in_words(tensor.format, with_range=True))
        for tensor in coverage.quantized
    )
    total = f"{len(coverage.layers)} layers quantized, {len(coverage.unquantized) or 'none'} left in float"
    notes = tuple(f"In float: {', '.join(names)} ({reason})" for reason, names in floating_by_reason(coverage).items())
    return Table(("Layer", "Kind", "Tensor", "Format"), rows, caption=f"{title}: {total}", notes=notes, folded=True)


def floating_by_reason(coverage: Coverage) -> dict[str, list[str]]:
    """Return the names of the modules that stay in float, by reason.

    >>> from dfq_plugins.types import Coverage
    >>> floating_by_reason(Coverage((), (("norm1", "folded"), ("pool", "no kernel"), ("norm2", "folded"))))
    {'folded': ['norm1', 'norm2'], 'no kernel': ['pool']}
    """
    grouped: dict[str, list[str]] = {}
    for name, reason in coverage.unquantized:
        grouped.setdefault(reason, []).append(name)
    return grouped


def coverage_section(coverages: Sequence[tuple[str, Coverage]]) -> Section:
    """Return the section that lists, model by model, what is quantized and what is not."""
    text = "Open a model to see the number format of every layer, as the framework itself reports it."
    return Section("What is quantized, and what is not", (text,), tuple(coverage_table(*item) for item in coverages))


def artifact_section(artifacts: Sequence[tuple[str, Artifact]], root: Path) -> Section:
    """Return the section that lists the files written, by framework, with the checks that each one passed."""
    text = "Each file was run and compared with the quantized model in PyTorch before it was kept."
    return Section("Files for deployment", (text,), tuple(artifact_facts(*item, root) for item in artifacts))


def rejected_section(rejected: Sequence[RejectedArtifact]) -> Section:
    """Return the section that lists the artifacts that failed, with what differs from the model in PyTorch."""
    text = "These exports failed. A file that failed its check is kept under the name shown; do not deploy it."
    return Section("Files that were rejected", (text,), tuple(map(rejected_facts, rejected)))


def rejected_facts(artifact: RejectedArtifact) -> Facts:
    """Return why one artifact was rejected, layer by layer where that is known."""
    name = artifact.path.name if artifact.path is not None else artifact.name or "export"
    differs = tuple(("differs", fault) for fault in artifact.faults)
    return Facts((("format", artifact.format or "unknown"), ("reason", artifact.reason), *differs), name)


def artifact_facts(framework: str, artifact: Artifact, root: Path) -> Facts:
    """Return what there is to say about one file, its path relative to `root` where it lies there."""
    inside = artifact.path.is_relative_to(root)
    path = artifact.path.relative_to(root).as_posix() if inside else artifact.path.name
    size = f"{artifact.size_bytes / KIBIBYTE:.1f} KiB"
    entries = (("framework", framework), ("format", artifact.format), ("size", size))
    checks = tuple((f"checked: {check.name}", check.detail) for check in artifact.checks)
    return Facts(entries + checks, path)


def versions() -> Facts:
    """Return the versions of Python and of the libraries that are installed."""
    installed = {name: _version(name) for name in LIBRARIES}
    entries = (("Python", platform.python_version()), ("Machine", f"{platform.system()} {platform.machine()}"))
    return Facts(entries + tuple((name, found) for name, found in installed.items() if found), "Versions", folded=True)


def settings_section(settings: Mapping[str, Mapping[str, object]]) -> Section:
    """Return the section with every setting, by what it belongs to, and the versions of the libraries."""
    text = (
        "Everything that this run depended on. The same settings and versions give the same result on the same machine."
    )
    facts = [
        Facts(tuple((key, format_setting(value)) for key, value in entries.items()), title, folded=True)
        for title, entries in settings.items()
    ]
    return Section("Settings and versions", (text,), (*facts, versions()))


def input_facts(spec: Specification) -> dict[str, object]:
    """Return the input specification as settings.

    >>> from dfq_plugins.types import InputSpec
    >>> input_facts(InputSpec((3, 32, 32)))["valid range"] is None
    True
    """
    if isinstance(spec, NetworkSpec):
        each = {name: input_facts(one) for name, one in spec.inputs.items()}
        facts = {
            f"{name}: {fact}": value for name, one in each.items() for fact, value in one.items() if fact != "classes"
        }
        return {**facts, "taken as": spec.call, "classes": spec.num_classes}
    return {
        "shape": spec.shape,
        "mean": spec.mean,
        "standard deviation": spec.std,
        "valid range": spec.value_range,
        "standardized samples": spec.standardized_samples,
        "classes": spec.num_classes,
    }


def format_setting(value: object) -> str:
    """Return a setting as text; whole numbers that belong together are sizes.

    >>> format_setting((0.5, 0.25)), format_setting(None), format_setting(True)
    ('0.5, 0.25', 'not set', 'yes')
    """
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple | list):
        separator = (
            " \N{MULTIPLICATION SIGN} " if all(isinstance(item, int) for item in value) and len(value) > 1 else ", "
        )
        return separator.join(format_setting(item) for item in value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
