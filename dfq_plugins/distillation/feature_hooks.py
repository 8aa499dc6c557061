"""Feature hooks: what enters a module of the teacher beside what enters the module of that name in the student.

Inputs rather than outputs are compared, because they survive what frameworks do to a network. A quantized graph folds
BatchNorm and ReLU into the convolution before them, whose output then is another quantity; what the *next* convolution
reads is still the same, and convolutions and linear layers keep their names in FX graphs of torch.ao and Brevitas.
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

_SHOWN = 6


@dataclass(frozen=True)
class FeaturePair:
    """A pair of modules whose inputs are compared: their names in the teacher and in the student."""

    teacher: str
    student: str


def resolve_feature_layers(
    names: Sequence[str], teacher: nn.Module, student: nn.Module, sample: Tensor
) -> tuple[FeaturePair, ...]:
    """Return the pairs of modules for the names that were asked for.

    A module that a framework dissolved, such as a whole block in an FX graph, is replaced by one that reads the same
    tensor and is still called, such as the block's first convolution.

    Args:
        names: modules of the teacher; `block-ends` stands for the ends of all its stages.
        teacher: float network.
        student: quantized network.
        sample: inputs `(batch, *shape)` to run both on once.

    Raises:
        UsageError: the teacher never calls a module of that name.
        ModelError: the student calls no module that reads the same tensor, or reads it in another shape.
    """
    calls = record_calls(teacher, sample)
    present = {call.name: call for call in record_calls(student, sample)}
    by_name = {call.name: call for call in calls}
    wanted: list[str] = []
    for name in names:
        wanted += block_ends(calls, sample) if name == BLOCK_ENDS else [name]
    if not wanted:
        raise UsageError(
            "Feature terms need hooks, and no module of the network downsamples. Name modules in the option hooks."
        )
    hooks = tuple(_resolve(name, by_name, calls, present) for name in dict.fromkeys(wanted))
    for pair in hooks:
        _require_same_places(pair, by_name[pair.teacher].entered, present[pair.student].entered)
    return hooks


def stages_alike(teacher: nn.Module, student: nn.Module, sample: Tensor) -> tuple[str, ...]:
    """Return the ends of the teacher's stages at which a module of that name in the student reads as many places.

    Without places, or with one, it must read as many channels as well. In a row of blocks of which the student has
    fewer, the blocks of one name stand in different places but for the first: these do not count.

    >>> import torch
    >>> layers = [torch.nn.Conv2d(1, 4, 1), torch.nn.Conv2d(4, 2, 1, stride=2), torch.nn.Flatten()]
    >>> first, second = (torch.nn.Sequential(*layers, torch.nn.Linear(8, 3)) for _ in range(2))
    >>> stages_alike(first, second, torch.zeros(2, 1, 4, 4))
    ('1', '3')
    """
    calls = record_calls(teacher, sample)
    theirs = {call.name: call.entered.shape for call in calls}
    ours = {call.name: call.entered.shape for call in record_calls(student, sample)}
    partners = {name: module for name, _, module in counterparts(student, teacher)}
    return tuple(
        name
        for name in block_ends(calls, sample)
        if name in ours and _alike(ours[name], theirs[name]) and partners.get(name) is teacher.get_submodule(name)
    )


def _resolve(name: str, by_name: Mapping[str, Call], calls: Sequence[Call], present: Mapping[str, Call]) -> FeaturePair:
    if name not in by_name:
        raise UsageError(
            f"A pair is a module that the network calls, and it calls none named {name!r}.{nearest(name, by_name)} "
            f"Name one of its modules, e.g. {_some(by_name)}, or {BLOCK_ENDS}."
        )
    call = by_name[name]
    readers = [name, *(other.name for other in calls if other.entered is call.entered and other.name != name)]
    matches = [reader for reader in readers if reader in present]
    if not matches:
        raise ModelError(
            f"The pair {name!r} is gone from the quantized network: the framework merged it with its neighbors."
            f"{nearest(name, present)} Choose a module that is left in both, e.g. "
            f"{_some(reader for reader in present if reader in by_name)}."
        )
    return FeaturePair(name, matches[0])


def _alike(ours: torch.Size, theirs: torch.Size) -> bool:
    return ours == theirs or (places(ours) > 1 and ours[2:] == theirs[2:])


def _require_same_places(pair: FeaturePair, theirs: Tensor, ours: Tensor) -> None:
    if theirs.ndim != ours.ndim or theirs.shape[2:] != ours.shape[2:]:
        raise ModelError(
            f"The pair {pair.teacher!r} reads a tensor of shape {tuple(theirs.shape)} in the teacher and "
            f"{tuple(ours.shape)} in the student. Choose a module that both call with as many places; channels may "
            "differ."
        )


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(map(repr, listed[:_SHOWN])) + (", ..." if len(listed) > _SHOWN else "")


class FeatureHooks(ForwardHooks):
    """Keeps what enters the named modules at each forward pass of one network, until `close()`.

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
        """Register a hook at each module."""
        # Each pass starts afresh, also after one that nobody collected, such as an evaluation between two steps.
        yield self._model.register_forward_pre_hook(lambda *_: self.forget())
        for name in self._names:
            yield self._model.get_submodule(name).register_forward_pre_hook(self._hook(name))

    def _hook(self, name: str) -> Any:
        def keep(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            feature = plain(inputs[0])
            if feature is not None:
                self._features.setdefault(name, feature)  # of a module that is called twice, the first call

        return keep

    def collect(self) -> list[Tensor]:
        """Return the features of the last forward pass in the order of the names, and forget them.

        Raises:
            UsageError: the network was not run since the last time.
        """
        missing = [name for name in self._names if name not in self._features]
        if missing:
            raise UsageError(
                f"The student must run before its loss is computed: no feature came from {missing[0]!r}. Call "
                "loss(student(inputs), inputs) in each step, with the student that the loss was made for."
            )
        features = [self._features[name] for name in self._names]
        self.forget()
        return features

    def forget(self) -> None:
        """Forget what was kept."""
        self._features.clear()

    def close(self) -> None:
        """Remove every hook, and forget what was kept."""
        super().close()
        self.forget()
