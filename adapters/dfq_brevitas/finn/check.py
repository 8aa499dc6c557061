"""Checks a QONNX file against FINN's rules, and reports which ones it passed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx

from dfq_brevitas.finn.graph_view import GraphView
from dfq_brevitas.finn.rules import RULES, Finding
from dfq_plugins.errors import ArtifactError
from dfq_plugins.types import Check

if TYPE_CHECKING:
    from pathlib import Path

CHECK_NAME = "FINN rules"
_SHOWN = 8


def check_finn_rules(path: Path) -> Check:
    """Check a QONNX file against all of FINN's rules.

    Args:
        path: a QONNX file.

    Returns:
        The check, whose detail lists the rules.

    Raises:
        ArtifactError: a rule is violated; the message names rule and node.
    """
    found = finn_violations(onnx.load(str(path)))
    if found:
        shown = "; ".join(f"{rule}: {finding.node} {finding.detail}" for rule, finding in found[:_SHOWN])
        more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise ArtifactError(
            f"A QONNX file for FINN must follow FINN's rules, but this one breaks {len(found)}: {shown}{more}. Change "
            "the operation that the node was exported from, or leave target=finn out; if the network contains nothing "
            "unusual, please report it."
        )
    return Check(CHECK_NAME, f"passed: {', '.join(name for name, _ in RULES)}")


def finn_violations(model: onnx.ModelProto) -> tuple[tuple[str, Finding], ...]:
    """Return every violation in a QONNX model, with the name of the violated rule."""
    graph = GraphView(model.graph)
    return tuple((name, finding) for name, rule in RULES for finding in rule(graph))
