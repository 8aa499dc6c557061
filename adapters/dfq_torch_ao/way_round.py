"""What users of torch.ao can do about a part of their network that FX or the int8 kernels do not take."""

from __future__ import annotations


def way_round(name: str) -> str:
    """Return the next step, given the name of the submodule at fault, which may be empty."""
    if name:
        return (
            f"Keep that submodule whole and in float with the option non_traceable=({name!r},) (in your own code: "
            f"PrepareCustomConfig().set_non_traceable_module_names([{name!r}])), or rewrite the line with tensor "
            "operations."
        )
    return (
        "Move the line into a submodule and name it in the option non_traceable (in your own code: "
        "PrepareCustomConfig().set_non_traceable_module_names([...])), or rewrite it with tensor operations."
    )
