"""What the int8 kernels of this processor need: unsigned activations, and weights with a reduced range."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from dfq_onnxruntime.options import OnnxRuntimeOptions
    from dfq_plugins.types import Recipe

_X86 = frozenset(("x86_64", "AMD64", "i386", "i686"))
_BYTE = 8


def is_x86() -> bool:
    """Return whether this processor is one of the x86 family."""
    return platform.machine() in _X86


def reduces_range(options: OnnxRuntimeOptions, recipe: Recipe) -> bool:
    """Return whether weights stay within -64..64.

    Without VNNI, x86 kernels add pairs of 8-bit products in 16 bits: 2 * 255 * 127 does not fit, 2 * 255 * 64 does.
    At other bit widths, layers are computed in float.
    """
    if (recipe.weight_bits, recipe.activation_bits) != (_BYTE, _BYTE):
        return False
    if options.reduce_range != "auto":
        return options.reduce_range
    return is_x86() and not torch.cpu._is_vnni_supported()  # noqa: SLF001  no public name
