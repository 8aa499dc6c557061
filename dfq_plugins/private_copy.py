"""Copies a network, whatever it is wrapped in and whatever tensors it has cached."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from dfq_plugins.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

_SHOWN = 5

WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, torch.optim.swa_utils.AveragedModel)
"""Modules of torch whose forward pass is that of their attribute `module`."""

COMPILED = "_orig_mod"
"""Attribute of a module that `torch.compile` returned: the module itself."""


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network inside DataParallel, DistributedDataParallel, AveragedModel or `torch.compile`, at any depth.

    A module without a forward pass that only holds another one as `module`, such as an average of weights, also counts.

    >>> network = nn.Linear(2, 1)
    >>> unwrapped(nn.DataParallel(torch.compile(network))) is network
    True
    """
    while (inner := _inside(model)) is not None:
        model = inner
    return model


def _inside(model: nn.Module) -> nn.Module | None:
    if isinstance(model, torch.jit.ScriptModule):
        return None
    holder = type(model).forward is nn.Module.forward and list(dict(model.named_children())) == ["module"]
    inner = model.module if isinstance(model, WRAPPERS) or holder else getattr(model, COMPILED, None)
    return inner if isinstance(inner, nn.Module) else None


def private_copy(model: nn.Module) -> nn.Module:
    """Return a deep copy of a network without its wrappers; compiled parts become plain modules.

    Tensors that a forward pass left in attributes are copied without their graph: a cached feature map, or the weight
    that `torch.nn.utils.weight_norm` computes.

    Raises:
        ModelError: it is not a torch module, it is TorchScript or has layers without a size, or it cannot be copied.
    """
    _require_module(model)
    model = unwrapped(model)
    _require_python(model)
    _require_initialized(model)
    memo: dict[int, object] = {id(value): value.detach().clone() for value in _computed_tensors(model)}
    try:
        with torch.no_grad():  # so that the parameters of scripted parts stay leaves
            for part in reversed(list(_wrapped_parts(model))):  # those inside others first
                memo[id(part)] = copy.deepcopy(unwrapped(part), memo)
            copied: nn.Module = copy.deepcopy(model, memo)
    except Exception as error:
        message = (
            f"The model {type(model).__name__} cannot be copied ({error}). dfq-plugins works on a copy to leave your "
            "model unchanged: remove whatever cannot be copied (open files, locks, lambdas with state), or build a "
            "fresh model."
        )
        raise ModelError(message) from error
    return copied


def _wrapped_parts(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the submodules to copy without their wrapper: compiled ones are slow to run, distributed ones fail."""
    for module in model.modules():
        distributed = isinstance(module, nn.parallel.DistributedDataParallel)
        if distributed or isinstance(getattr(module, COMPILED, None), nn.Module):
            yield module


def _computed_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Yield the tensors in attributes of modules, lists and dictionaries included, that are results with a graph."""
    for module in model.modules():
        for value in pytree.tree_leaves(vars(module)):
            if isinstance(value, Tensor) and not value.is_leaf:
                yield value


def _require_module(model: object) -> None:
    if isinstance(model, nn.Module):
        return
    given = str(model) if isinstance(model, (str, Path)) else type(model).__name__
    if given.lower().endswith(".onnx"):
        raise ModelError(
            f"A network must be a torch module, whose layers and gradients are used, got the ONNX file {given}. Give "
            "the torch network that it was exported from. Only calibration takes ONNX files: "
            'dfq_plugins.run_quantization(file, data, calibrator="onnxruntime").'
        )
    raise ModelError(f"A network must be a torch module, got {given!r}. Build the network, and pass it.")


def _require_python(model: nn.Module) -> None:
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            "The layers of a network must be Python modules, to be observed and quantized, but "
            f"{model.original_name} is TorchScript. Build the network that was scripted or traced, call "
            "network.load_state_dict(scripted.state_dict()), and pass that network."
        )
    if isinstance(model, torch.fx.GraphModule) and _is_exported(model):
        raise ModelError(
            "The layers of a network must be modules, to be observed and quantized, but this one comes from "
            "torch.export, which replaces them by operations. Pass the network that was exported."
        )


def _is_exported(model: torch.fx.GraphModule) -> bool:
    """Return whether a graph calls torch's own operators; `torch.fx` records Python functions and modules."""
    return any(isinstance(node.target, torch._ops.OpOverload) for node in model.graph.nodes)  # noqa: SLF001  no public name


def _require_initialized(model: nn.Module) -> None:
    values = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    names = [name for name, value in values if is_lazy(value)]
    if names:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise ModelError(
            f"Every weight needs a size, but {', '.join(names[:_SHOWN])}{more} of {type(model).__name__} are "
            "uninitialized: lazy layers get theirs from the first batch. Load the trained weights, or run the network "
            "once on an input before."
        )
