"""What users of ModelOpt can do about a part of their network that it does not take."""

from __future__ import annotations


def way_round(_name: str) -> str:
    """Return the next step; it is the same for every submodule."""
    return (
        "Build that part from torch.nn's layers, or move it out of the network. If only the range search or a residual "
        "quantizer fails, try the options activations=max and residual_quantizer=false."
    )
