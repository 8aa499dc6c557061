"""What users of Brevitas can do about a part of their network that its graph mode does not take."""

from __future__ import annotations


def way_round(_name: str) -> str:
    """Return the next step; it is the same for every submodule."""
    return (
        "Rewrite that part with tensor operations or plain torch modules, move it out of the network, or use the "
        "calibrator 'pytorch-quantization', which does not trace; in your own code, "
        "brevitas.graph.quantize.layerwise_quantize does not trace either."
    )
