"""Instance norms with recorded statistics as BatchNorms, which they are in eval mode: torch.onnx exports only those."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.instancenorm import _InstanceNorm

_KINDS: dict[type[nn.Module], type[nn.Module]] = {
    nn.InstanceNorm1d: nn.BatchNorm1d,
    nn.InstanceNorm2d: nn.BatchNorm2d,
    nn.InstanceNorm3d: nn.BatchNorm3d,
}


def with_recorded_norms(network: nn.Module) -> nn.Module:
    """Replace the instance norms inside a network that normalize by recorded statistics, in place.

    >>> type(with_recorded_norms(nn.Sequential(nn.InstanceNorm1d(4, track_running_stats=True)))[0]).__name__
    'BatchNorm1d'
    """
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, _InstanceNorm) and child.running_mean is not None and type(child) in _KINDS:
                module.add_module(name, _as_batch_norm(child))
    return network


def _as_batch_norm(norm: _InstanceNorm) -> nn.Module:
    replaced = _KINDS[type(norm)](norm.num_features, norm.eps, affine=norm.affine)
    replaced.load_state_dict(norm.state_dict())
    return replaced.eval().requires_grad_(requires_grad=False)
