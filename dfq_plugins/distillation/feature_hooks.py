"""Feature hooks: capture the inputs of corresponding modules in the teacher and the student.

Inputs are compared rather than outputs because they survive a framework's graph transformations. A quantized graph
folds BatchNorm and ReLU into the preceding convolution, which changes that convolution's output. The input of the
*next* convolution stays the same, and convolutions and linear layers keep their names in the FX graphs of torch.ao and
Brevitas.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dfq_plugins.distillation.inheritance import counterparts
from dfq_plugins.distillation.options import BLOCK_ENDS
from dfq_plugins.errors import ModelError, UsageError, nearest
from dfq_plugins.model_state import ForwardHooks
from dfq_plugins.network.probe import block_ends, places, plain, record_calls

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import torch
    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle

    from dfq_plugins.network.probe import Call
    from dfq_plugins.types import Inputs, Specification

_SHOWN = 6


@dataclass(frozen=True)
class FeaturePair:
    """A pair of modules whose inputs are compared: their names in the teacher and in the student."""

    teacher: str
    student: str


def resolve_feature_layers(
    names: Sequence[str], teacher: nn.Module, student: nn.Module, sample: Inputs, spec: Specification | None = None
) -> tuple[FeaturePair, ...]:
    """Resolve module names to pairs of modules in the teacher and the student.

    If the student no longer has a module, such as a whole block in an FX graph, another module that reads the same
    tensor takes its place, such as the block's first convolution.

    Args:
        names: modules of the teacher; `block-ends` means the ends of all its stages.
        teacher: float network.
        student: quantized network.
        sample: inputs `(batch, *shape)`; both networks run on them once.
        spec: says how the networks take several inputs; None means by keywords.

    Raises:
        UsageError: the teacher never calls a module with that name.
        ModelError: no module that the student calls reads the same tensor, or it reads a different shape.
    """
    calls = record_calls(teacher, sample, spec)
    present = {call.name: call for call in record_calls(student, sample, spec)}
    by_name = {call.name: call for call in calls}
    wanted: list[str] = []
    for name in names:
        wanted += block_ends(calls, sample) if name == BLOCK_ENDS else [name]
    if not wanted:
        raise UsageError(
            "Feature terms need layers to compare, and no module of the network downsamples. Name modules in the "
            "option feature_layers."
        )
    hooks = tuple(_resolve(name, by_name, calls, present) for name in dict.fromkeys(wanted))
    for pair in hooks:
        _require_same_places(pair, by_name[pair.teacher].entered, present[pair.student].entered)
    return hooks


def stages_alike(
    teacher: nn.Module, student: nn.Module, sample: Inputs, spec: Specification | None = None
) -> tuple[str, ...]:
    """Return the stage ends at which the same-named modules of both networks read inputs of the same spatial size.

    Without spatial positions, or with only one, the number of channels must match as well. If the student has fewer
    blocks in a sequence than the teacher, blocks with the same name correspond only at the start of the sequence;
    the others do not count.

    >>> import torch
    >>> layers = [torch.nn.Conv2d(1, 4, 1), torch.nn.Conv2d(4, 2, 1, stride=2), torch.nn.Flatten()]
    >>> first, second = (torch.nn.Sequential(*layers, torch.nn.Linear(8, 3)) for _ in range(2))
    >>> stages_alike(first, second, torch.zeros(2, 1, 4, 4))
    ('1', '3')
    """
    calls = record_calls(teacher, sample, spec)
    theirs = {call.name: call.entered.shape for call in calls}
    ours = {call.name: call.entered.shape for call in record_calls(student, sample, spec)}
    partners = {name: module for name, _, module in counterparts(student, teacher)}
    return tuple(
        name
        for name in block_ends(calls, sample)
        if name in ours and _alike(ours[name], theirs[name]) and partners.get(name) is teacher.get_submodule(name)
    )


def _resolve(name: str, by_name: Mapping[str, Call], calls: Sequence[Call], present: Mapping[str, Call]) -> FeaturePair:
    if name not in by_name:
        raise UsageError(
            f"Feature terms compare modules that the network calls, and it calls none named {name!r}."
            f"{nearest(name, by_name)} Name one of its modules, e.g. {_some(by_name)}, or {BLOCK_ENDS}."
        )
    call = by_name[name]
    readers = [name, *(other.name for other in calls if other.entered is call.entered and other.name != name)]
    matches = [reader for reader in readers if reader in present]
    if not matches:
        raise ModelError(
            f"The module {name!r} is missing from the quantized network: the framework fused it with its neighbors."
            f"{nearest(name, present)} Choose a module that both networks have, e.g. "
            f"{_some(reader for reader in present if reader in by_name)}."
        )
    return FeaturePair(name, matches[0])


def _alike(ours: torch.Size, theirs: torch.Size) -> bool:
    return ours == theirs or (places(ours) > 1 and ours[2:] == theirs[2:])


def _require_same_places(pair: FeaturePair, theirs: Tensor, ours: Tensor) -> None:
    if theirs.ndim != ours.ndim or theirs.shape[2:] != ours.shape[2:]:
        raise ModelError(
            f"The module {pair.teacher!r} reads a tensor of shape {tuple(theirs.shape)} in the teacher and "
            f"{tuple(ours.shape)} in the student. Choose a module whose input has the same spatial size in both; the "
            "number of channels may differ."
        )


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(map(repr, listed[:_SHOWN])) + (", ..." if len(listed) > _SHOWN else "")


class FeatureHooks(ForwardHooks):
    """Captures the inputs of the named modules at each forward pass of a network, until `close()`.

    >>> import torch
    >>> network = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(2, 1))
    >>> with FeatureHooks(network, ["1"]) as hooks:
    ...     _ = network(torch.tensor([[-1.0, 2.0]]))
    ...     hooks.collect()
    [tensor([[0., 2.]])]
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._features: dict[str, Tensor] = {}
        self._model = model

    def attach(self) -> Iterator[RemovableHandle]:
        """Register a hook on each module."""
        # Every forward pass starts clean, even if the last one was never collected, such as a validation pass.
        yield self._model.register_forward_pre_hook(lambda *_: self.forget())
        for name in self._names:
            yield self._model.get_submodule(name).register_forward_pre_hook(self._hook(name))

    def _hook(self, name: str) -> Any:
        def keep(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            feature = plain(inputs[0])
            if feature is not None:
                self._features.setdefault(name, feature)  # the first call, if a module is called more than once

        return keep

    def collect(self) -> list[Tensor]:
        """Return the features of the last forward pass in the order of the names, and clear them.

        Raises:
            UsageError: the network has not run since the last call.
        """
        missing = [name for name in self._names if name not in self._features]
        if missing:
            raise UsageError(
                f"The student must run before its loss is computed: no feature was captured at {missing[0]!r}. Call "
                "loss(student(inputs), inputs) in each step, with the student that was given to the loss."
            )
        features = [self._features[name] for name in self._names]
        self.forget()
        return features

    def forget(self) -> None:
        """Clear the captured features."""
        self._features.clear()

    def close(self) -> None:
        """Remove all hooks and clear the captured features."""
        super().close()
        self.forget()
