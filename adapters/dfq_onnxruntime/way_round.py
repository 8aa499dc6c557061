"""What users of ONNX Runtime can do about a part of their network that it does not take."""

from __future__ import annotations


def way_round(name: str) -> str:
    """Return the next step.

    >>> way_round("head")
    "Keep that part in float with the option float_nodes=head, or name the operators to quantize, e.g. operators=Conv."
    """
    return (
        f"Keep that part in float with the option float_nodes={name or 'NAME'}, or name the operators to quantize, "
        "e.g. operators=Conv."
    )
