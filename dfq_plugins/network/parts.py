"""Parts of a network: submodules, what each is called with, and each as a network of its own.

A part may take and return any nesting of tuples, lists and dictionaries of tensors. As a network, it takes its tensors
in order, and returns them by name.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dfq_plugins.errors import INTEGER_INPUTS, ModelError, UsageError, first_line, nearest
from dfq_plugins.model_state import hooked
from dfq_plugins.types import InputSpec, NetworkSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from dfq_plugins.types import Inputs, Specification

_CONSTANTS = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_SHOWN = 4
_OUTPUT = "output"


class _TensorPlace:
    """Stands for a tensor in a nesting; a class, which copies of a nesting share."""


@dataclass(frozen=True)
class Nesting:
    """How tensors and constants are nested in the arguments, or in the result, of a call.

    Args:
        tree: the containers.
        leaves: the constants, and a placeholder for each tensor, in order.
    """

    tree: pytree.TreeSpec
    leaves: tuple[Any, ...]

    def filled(self, tensors: Sequence[Any]) -> Any:
        """Return the nesting with these tensors, in order.

        >>> nesting_of({"a": torch.ones(1), "b": [2]})[0].filled(["tensor"])
        {'a': 'tensor', 'b': [2]}
        """
        left = iter(tensors)
        return pytree.tree_unflatten([next(left) if leaf is _TensorPlace else leaf for leaf in self.leaves], self.tree)

    @property
    def tensors(self) -> int:
        """Number of tensors."""
        return sum(leaf is _TensorPlace for leaf in self.leaves)

    def paths(self) -> list[str]:
        """Return the path to each tensor: `a`, or `a.0`; empty for a tensor that is not nested.

        >>> nesting_of({"a": [torch.ones(1), torch.ones(1)]})[0].paths()
        ['a.0', 'a.1']
        """
        found, _ = pytree.tree_flatten_with_path(self.filled(range(self.tensors)))
        of_tensor = [path for (path, _), leaf in zip(found, self.leaves, strict=True) if leaf is _TensorPlace]
        return [".".join(map(_text, path)) for path in of_tensor]


def nesting_of(value: Any) -> tuple[Nesting, list[Tensor]]:
    """Return the nesting of a value and its tensors in order.

    Raises:
        ModelError: it holds something other than tensors and constants.
    """
    leaves, tree = pytree.tree_flatten(value)
    if other := [leaf for leaf in leaves if not isinstance(leaf, (Tensor, *_CONSTANTS))]:
        raise ModelError(
            "A part must take and return tensors in tuples, lists and dictionaries, but there is an object of type "
            f"{type(other[0]).__name__}. Name a module inside it."
        )
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    return Nesting(tree, tuple(_TensorPlace if isinstance(leaf, Tensor) else leaf for leaf in leaves)), tensors


def _text(key: Any) -> str:
    return str(next(getattr(key, name) for name in ("key", "idx", "name") if hasattr(key, name)))


@dataclass(frozen=True)
class Form:
    """What a call of a part is given, except for the values and the number of samples.

    Args:
        nesting: how tensors are nested in the positional and the keyword arguments.
        shapes: shape of one sample of each tensor, in order.
    """

    nesting: Nesting
    shapes: tuple[tuple[int, ...], ...]

    def __str__(self) -> str:
        more = ", ..." if len(self.shapes) > _SHOWN else ""
        return ", ".join(map(str, self.shapes[:_SHOWN])) + more


@dataclass(frozen=True)
class Call:
    """One call of a part: what it is given, and its tensors `(samples, *shape)`."""

    name: str
    form: Form
    tensors: tuple[Tensor, ...]

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self.tensors[0])


def call_of(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Return the record of a call.

    Raises:
        ModelError: an argument is not a tensor, a constant or a nesting of them, there is no tensor, one does not hold
            floating-point numbers, or the tensors have different numbers of samples.
    """
    try:
        nesting, tensors = nesting_of((args, kwargs))
    except ModelError as error:
        raise ModelError(f"{name!r} cannot be quantized on its own. {error}") from error
    if wrong := [tensor.dtype for tensor in tensors if not tensor.is_floating_point()]:
        raise ModelError(f"{name!r} cannot be quantized on its own: it takes {wrong[0]}. {INTEGER_INPUTS}")
    if len({tensor.shape[:1] for tensor in tensors}) != 1 or any(tensor.ndim < 2 for tensor in tensors):  # noqa: PLR2004
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors[:_SHOWN]) or "no tensor"
        raise ModelError(
            f"A part must take tensors of shape (samples, ...) with the same samples, but {name!r} takes {shapes}. "
            "Name a module inside it."
        )
    return Call(name, Form(nesting, tuple(tuple(tensor.shape[1:]) for tensor in tensors)), tuple(tensors))


class _EnoughError(BaseException):
    """Ends a run whose remaining calls are not needed; no network catches it."""


def recorded(
    network: nn.Module, names: Iterable[str], run: Callable[[nn.Module], Any], *, limit: int | None = None
) -> list[Call]:
    """Run a network and return the calls of its parts, in order, with copies of their tensors.

    Args:
        network: the network.
        names: names of the parts.
        run: runs it.
        limit: number of calls after which the run ends; None finishes it.

    Raises:
        ModelError: it does not run, or a part takes something else than tensors.
    """
    calls: list[Call] = []

    def record(name: str, _part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = call_of(name, args, kwargs)
        copies = tuple(tensor.detach().clone() for tensor in call.tensors)
        calls.append(Call(call.name, call.form, copies))
        if len(calls) == limit:
            raise _EnoughError

    parts = ((name, network.get_submodule(name)) for name in names)
    hooks = (part.register_forward_pre_hook(partial(record, name), with_kwargs=True) for name, part in parts)
    with hooked(hooks), torch.no_grad():
        try:
            run(network)
        except _EnoughError:
            pass
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(
                f"{type(network).__name__} does not run on the calibration data: {type(error).__name__}: "
                f"{first_line(error)}. Give data as the network takes it; a network may take a batch or a list of "
                'images: call="batch" or call="list".'
            ) from error
    return calls


@dataclass
class Calls:
    """What a part is called with over the calibration data.

    Args:
        forms: the different forms, in order.
        samples: number of samples of all calls.
        counts: number of calls in each run.
    """

    forms: list[Form] = field(default_factory=list)
    samples: int = 0
    counts: list[int] = field(default_factory=list)


def survey(network: nn.Module, names: Sequence[str], runs: Iterable[Callable[[nn.Module], Any]]) -> dict[str, Calls]:
    """Return what each part is called with.

    A part may be called several times in a run with different shapes, such as a head on the levels of a pyramid.

    Args:
        network: the network.
        names: names of the parts.
        runs: runs the network on each batch.

    Raises:
        ModelError: the same call of a part has different shapes in different runs.
    """
    found = {name: Calls() for name in names}
    sites: dict[tuple[str, int], Form] = {}
    for run in runs:
        seen = dict.fromkeys(names, 0)
        for call in recorded(network, names, run):
            calls, site = found[call.name], (call.name, seen[call.name])
            seen[call.name] += 1
            calls.samples += call.samples
            former = sites.setdefault(site, call.form)
            if former != call.form:
                raise ModelError(
                    f"A quantized part has fixed sizes, but call {site[1] + 1} of {call.name!r} is given "
                    f"{former} for one batch and {call.form} for another. Resize the images to one size, or name parts "
                    "that are given the same shapes in each run."
                )
            if call.samples and call.form not in calls.forms:
                calls.forms.append(call.form)
        for name in names:
            found[name].counts.append(seen[name])
    return found


class PartNetwork(nn.Module):
    """A part as a network: takes the tensors of its arguments in order, and returns those of its result by name.

    Its modules have the names that they have in the whole network, for messages and options. A result of one tensor is
    returned as it is.
    """

    def __init__(self, name: str, part: nn.Module, arguments: Nesting) -> None:
        super().__init__()
        *parents, last = name.split(".")
        holder: nn.Module = self
        for parent in parents:
            holder.add_module(parent, nn.Module())
            holder = holder.get_submodule(parent)
        holder.add_module(last, part)
        self._part_name, self._arguments = name, arguments

    def forward(self, *tensors: Tensor) -> Any:
        """Return the part's tensors."""
        args, kwargs = self._arguments.filled(tensors)
        return named_tensors(self.get_submodule(self._part_name)(*args, **kwargs))


def named_tensors(result: Any) -> Any:
    """Return the tensors of a part's result by the path to each; a single one as it is."""
    nesting, tensors = nesting_of(result)
    names = _unique(path or _OUTPUT for path in nesting.paths())
    return tensors[0] if len(tensors) == 1 else dict(zip(names, tensors, strict=True))


def part_specification(part: nn.Module, form: Form) -> Specification:
    """Return the specification of a `PartNetwork`; its inputs have the names of the part's parameters, and paths."""
    if len(form.shapes) == 1:
        return InputSpec(form.shapes[0])
    specs = map(InputSpec, form.shapes)
    return NetworkSpec(dict(zip(_input_names(part, form.nesting), specs, strict=True)), call="positional")


def _input_names(part: nn.Module, nesting: Nesting) -> list[str]:
    parameters = [
        parameter.name
        for parameter in inspect.signature(part.forward).parameters.values()
        if parameter.kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    ]
    names = []
    for path in nesting.paths():
        kind, first, *rest = path.split(".")
        position = int(first) if kind == "0" else None
        known = position is None or position < len(parameters)
        head = first if position is None else parameters[position] if known else f"input.{position}"
        names.append(re.sub(r"[^\w.-]", "_", ".".join((head, *rest))))
    return _unique(names)


def _unique(names: Iterable[str]) -> list[str]:
    found: list[str] = []
    for name in names:
        free = name
        while free in found:
            free += "_"
        found.append(free)
    return found


@dataclass(frozen=True)
class PartInputs:
    """The inputs of a part's calls of one form, as batches for a calibrator; each pass runs the network up to them.

    Args:
        network: the whole network.
        name: name of the part.
        form: the form of the calls.
        spec: the specification of the part.
        runs: runs the network on each batch.
        counts: number of calls in each run, after which the run ends.
    """

    network: nn.Module
    name: str
    form: Form
    spec: Specification
    runs: Sequence[Callable[[nn.Module], Any]]
    counts: Sequence[int]

    def __iter__(self) -> Iterator[Inputs]:
        for run, count in zip(self.runs, self.counts, strict=True):
            for call in recorded(self.network, [self.name], run, limit=count) if count else ():
                if call.form == self.form and call.samples:
                    yield as_inputs(self.spec, call.tensors)


def as_inputs(spec: Specification, tensors: Sequence[Tensor]) -> Inputs:
    """Return a part's tensors as inputs of its specification."""
    return tensors[0] if isinstance(spec, InputSpec) else dict(zip(spec.order, tensors, strict=True))


def check_parts(network: nn.Module, names: Sequence[str]) -> None:
    """Check that parts exist and do not overlap.

    Raises:
        UsageError: a name is unknown, empty or given twice, or a part lies in another one.
    """
    modules = dict(network.named_modules())
    for name in names:
        if not name or name not in modules:
            raise UsageError(
                f"A part must be a submodule of {type(network).__name__}, got {name!r}.{nearest(name, modules)} Its "
                f"children are {', '.join(dict(network.named_children()))}."
            )
        if outer := next((other for other in names if name.startswith(f"{other}.")), None):
            raise UsageError(f"Parts must not lie in each other, but {name!r} lies in {outer!r}. Name one of them.")
    if len(set(names)) != len(names):
        raise UsageError(f"Each part can be named once, got {', '.join(names)}.")


DETECTOR_PARTS = (
    "backbone",
    "neck",
    "head",
    "rpn.head",
    "roi_heads.box_head",
    "roi_heads.box_predictor",
    "roi_heads.mask_head",
    "roi_heads.mask_predictor",
    "roi_heads.keypoint_head",
    "roi_heads.keypoint_predictor",
)
"""Names of the parts of detectors that hold layers to quantize: torchvision's, and what others use."""

_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)  # noqa: SLF001  no public base class


def holds_layers(module: nn.Module) -> bool:
    """Return whether a module holds a convolution or a linear layer."""
    return any(isinstance(inner, _LAYERS) for inner in module.modules())


def known_parts(network: nn.Module) -> tuple[str, ...]:
    """Return the parts of a detector that are known by their names and hold layers to quantize.

    Raises:
        UsageError: there are none.
    """
    modules = dict(network.named_modules())
    found = tuple(name for name in DETECTOR_PARTS if name in modules and holds_layers(modules[name]))
    if not found:
        children = [name for name, child in network.named_children() if holds_layers(child)]
        raise UsageError(
            f"The parts of {type(network).__name__} are not known by their names ({', '.join(DETECTOR_PARTS[:3])}). "
            f"Name them: parts={tuple(children)} hold convolutions or linear layers."
        )
    return found
