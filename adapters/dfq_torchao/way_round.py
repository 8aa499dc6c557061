"""What users of torchao can do about a part of their network that torch.export or a quantizer does not take."""

from __future__ import annotations


def way_round(name: str) -> str:
    """Return the next step, given the name of the submodule at fault, which may be empty."""
    if name:
        return (
            f"Keep its layers in float with the option keep_float=({name!r},), rewrite the line with tensor "
            "operations, or quantize only the parts around it with dfq.quantize_parts."
        )
    return (
        "Rewrite the line with tensor operations, quantize only the parts around it with dfq.quantize_parts, or try "
        "another quantizer with the option quantizer."
    )


def rewrite(name: str) -> str:
    """Return the next step about a line that cannot be traced: torch.export takes no submodule as it is."""
    part = f" {name!r}" if name else ""
    return (
        "torch.export has no place for a submodule that stays Python: rewrite the line with tensor operations, e.g. "
        f"torch.where, or quantize only the parts around{part or ' it'} with dfq.quantize_parts."
    )
