"""What `dfq quantize`, `dfq finetune` and `dfq demo` print of a quantized model and its files."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from dfq_plugins.cli.output import note_unknown_classes, print_table
from dfq_plugins.errors import ArtifactError
from dfq_plugins.quantization.formats import coverage_in_words

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dfq_plugins.network.agreement import OutputAgreement
    from dfq_plugins.quantization.result import QuantizationRun
    from dfq_plugins.types import RejectedArtifact, Specification


def print_run(run: QuantizationRun) -> None:
    """Print what was quantized, how well it agrees, and what was written."""
    click.echo(f"Quantized by {run.calibrator} at {run.recipe}: {len(run.coverage.layers)} layers.")
    for line in coverage_in_words(run.coverage):
        click.echo(f"  {line}")
    for name, reason in run.coverage.unquantized:
        click.echo(f"  {name} stays in float: {reason}")
    print_blocks(run)
    print_agreement(run.output_agreement, "Agreement with the float model on the data")
    rows = [
        (str(artifact.path), artifact.format, f"{artifact.size_bytes / 1000:.1f} kB", f"{check.name}: {check.detail}")
        for artifact in run.artifacts
        for check in artifact.checks
    ]
    if rows:
        print_table(("Artifact", "Format", "Size", "Check"), rows)
    print_rejected(run.rejected)


def print_blocks(run: QuantizationRun) -> None:
    """Print the blocks that were reconstructed, if any."""
    rows = [
        (
            block.name,
            f"{block.error_before:.4f}",
            f"{block.error:.4f}",
            str(block.steps) if block.steps else "restored",
            f"{block.seconds:.0f} s",
            f"{block.megabytes:.0f} MiB",
        )
        for block in run.reconstruction
    ]
    if rows:
        print_table(("Reconstructed block", "Error before", "Error", "Steps", "Time", "Values"), rows)


def note_classes(run: QuantizationRun, known: Specification, given: int | None) -> None:
    """Say that the network is not known to be a classifier, if nobody said so."""
    if known.num_classes is None and given is None and all(found.kind == "values" for found in run.output_agreement):
        note_unknown_classes()


def print_agreement(found: Sequence[OutputAgreement], title: str) -> None:
    """Print how closely each output agrees; on one line if there is only one."""
    if len(found) == 1:
        click.echo(f"{title}: {found[0].figures}")
        return
    click.echo(f"{title}:")
    for output in found:
        click.echo(f"  {output}")


def print_rejected(rejected: Iterable[RejectedArtifact]) -> None:
    """Print which artifacts were rejected, why, and what differs."""
    for artifact in rejected:
        click.echo(f"Rejected: {artifact.path or artifact.name or 'the export'}: {artifact.reason}")
        for fault in artifact.faults:
            click.echo(f"  {fault}")


def run_as_dict(run: QuantizationRun) -> dict[str, Any]:
    """Return the run for `--json`."""
    return {
        "calibrator": run.calibrator,
        "recipe": str(run.recipe),
        "agreement": run.agreement,
        "output_agreement": [asdict(output) for output in run.output_agreement],
        "coverage": asdict(run.coverage),
        "artifacts": [asdict(artifact) for artifact in run.artifacts],
        "rejected": [asdict(artifact) for artifact in run.rejected],
        "reconstruction": [asdict(block) for block in run.reconstruction],
    }


def require_artifacts(rejected: Sequence[RejectedArtifact]) -> None:
    """Fail, after everything else was written and printed, where an artifact was rejected.

    Raises:
        ArtifactError: names the rejected artifacts.
    """
    if rejected:
        names = ", ".join(artifact.name or "the export" for artifact in rejected)
        raise ArtifactError(
            f"Rejected: {names}. Everything else was written; the quantized model itself is sound. See above for what "
            "differs."
        )
