"""What the processor's integer instructions can do."""

from __future__ import annotations

import torch


def saturates_pairs() -> bool:
    """Return whether this processor adds pairs of 8-bit products in 16 bits, because it lacks VNNI.

    Then 2 * 255 * 127 does not fit, but 2 * 127 * 127 does: unsigned activations have to stay within 0..127.
    """
    return not torch.cpu._is_vnni_supported()  # noqa: SLF001  no public name
