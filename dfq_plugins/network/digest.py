"""A model's digest: the same for equal weights and structure, on any device, in any mode."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import nn


def model_digest(model: nn.Module, *, weights: bool = True) -> str:
    """Return the SHA-256 over the names, shapes, types and bytes of the state dictionary, and the module structure.

    Without `weights` the bytes are left out: the digest is then that of the architecture.

    The settings that torch's own modules print (stride, padding, eps) count as structure. `num_batches_tracked`
    counters are left out: they do not change what the network computes.

    >>> first, second = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    >>> _ = second.load_state_dict(first.state_dict())
    >>> model_digest(first) == model_digest(second)
    True
    """
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        own = type(module).__module__.startswith("torch.nn.")  # others may print what changes from run to run
        settings = module.extra_repr() if own else ""
        digest.update(f"{name}:{type(module).__qualname__}({settings});".encode())
    for name, value in sorted(model.state_dict().items()):
        if isinstance(value, torch.Tensor) and not name.endswith("num_batches_tracked"):
            array = value.detach().cpu().contiguous()
            digest.update(f"{name}:{array.dtype}:{tuple(array.shape)};".encode())
            if weights and array.numel():
                digest.update(array.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
