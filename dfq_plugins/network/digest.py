"""Digest of a model: equal for equal weights and structure, on any device and in any mode."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

from dfq_plugins.network.file_network import FileNetwork

if TYPE_CHECKING:
    from torch import nn


def model_digest(model: nn.Module, *, weights: bool = True) -> str:
    """Return the SHA-256 of the names, shapes, types and bytes of the state dict, and of the module structure.

    Without `weights`, the bytes are omitted and the digest is that of the architecture.

    The settings that torch's own modules print (stride, padding, eps) are part of the structure. The
    `num_batches_tracked` counters are omitted: they do not affect the output of the network.

    >>> first, second = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    >>> _ = second.load_state_dict(first.state_dict())
    >>> model_digest(first) == model_digest(second)
    True
    """
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        own = type(module).__module__.startswith("torch.nn.")  # the output of other modules may differ from run to run
        settings = module.extra_repr() if own else ""
        digest.update(f"{name}:{type(module).__qualname__}({settings});".encode())
        if isinstance(module, FileNetwork):
            digest.update(module.program)
    for name, value in sorted(model.state_dict().items()):
        if isinstance(value, torch.Tensor) and not name.endswith("num_batches_tracked"):
            array = value.detach().cpu().contiguous()
            digest.update(f"{name}:{array.dtype}:{tuple(array.shape)};".encode())
            if weights and array.numel():
                digest.update(array.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
