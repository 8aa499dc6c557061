"""Runs a network and records what it asks torch for.

The network runs on real tensors, so Python decides what Python can decide: branches and loops on shapes, assertions,
unpacking, arithmetic with sizes. What depends on the values of the input cannot be recorded and is refused, with its
line.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakTensorKeyDictionary

from dfq_plugins.model_state import hooked
from dfq_plugins.network.outputs import named_outputs, nested_outputs
from dfq_plugins.network.trace_errors import code_line
from dfq_plugins.network.tracing.operation import (
    Attribute,
    Constant,
    Operation,
    Place,
    Recording,
    Reference,
    UntraceableError,
    leaves,
    map_values,
)
from dfq_plugins.network.tracing.replacing import replace_items
from dfq_plugins.network.tracing.spelling import Call, canonical, is_in_place
from dfq_plugins.network.tracing.views import inverse_view

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from torch.utils.hooks import RemovableHandle

_READS = frozenset(
    [
        "item",
        "tolist",
        "numpy",
        "equal",
        "allclose",
        "is_nonzero",
        "__bool__",
        "__int__",
        "__float__",
        "__index__",
        "__complex__",
        "__array__",
        "__contains__",
        "__format__",
    ]
)
"""Functions that hand values of a tensor to Python."""
_RANDOM = frozenset(
    [
        "rand",
        "randn",
        "randint",
        "randperm",
        "rand_like",
        "randn_like",
        "randint_like",
        "normal",
        "normal_",
        "uniform_",
        "bernoulli",
        "bernoulli_",
        "multinomial",
        "poisson",
        "random_",
        "exponential_",
    ]
)
_LIKE = frozenset(
    [
        "new_zeros",
        "new_ones",
        "new_full",
        "new_empty",
        "new_tensor",
        "zeros_like",
        "ones_like",
        "full_like",
        "empty_like",
        "rand_like",
        "randn_like",
        "randint_like",
    ]
)
"""Functions that take nothing but size, type and device from the tensor that they are given."""
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.TransformerEncoder, nn.TransformerEncoderLayer)
_CONTAINERS += (nn.TransformerDecoder, nn.TransformerDecoderLayer, nn.Transformer)  # type: ignore[assignment]
NOT_THE_MODEL = (Path(torch.__file__).parent, Path(__file__).parent)
"""Folders whose frames are not the code of the model."""


def is_leaf(module: nn.Module) -> bool:
    """Return whether a submodule stays one call: a layer of `torch.nn`, but not a container or a user's subclass."""
    defined_in = type(module).__module__
    return defined_in.startswith(("torch.nn.", "torch.ao.nn.")) and not isinstance(module, _CONTAINERS)


@torch.inference_mode()  # where a view does not keep the tensor alive that it was taken from
def record(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    call: Callable[[nn.Module, Mapping[str, Tensor]], Any],
    *,
    opaque: Collection[str] = (),
) -> Recording:
    """Run `model` once and return what it did.

    Args:
        model: a private copy in eval mode.
        inputs: the inputs by name, `(batch, *shape)` each.
        call: calls the model with the inputs.
        opaque: names of submodules to record as one call, whatever they do.

    Raises:
        UntraceableError: the forward pass depends on the values of its input.
    """
    recorder = _Recorder(model, opaque)
    given = {name: value.clone() for name, value in inputs.items()}
    recorder.add_inputs(given)
    with recorder.attached(), recorder:
        output = call(model, given)
    recording = recorder.recording
    recording.values = plain_structure(output)
    recording.output = map_values(recorder.reference, recording.values)
    return recording


def plain_structure(output: Any) -> Any:
    """Return outputs as nested tuples, lists and dictionaries of tensors: no constants, records as dictionaries."""
    if all(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(output)):
        return _plain_containers(output)
    return nested_outputs(named_outputs(output))


def _plain_containers(output: Any) -> Any:
    if isinstance(output, Mapping):
        return {key: _plain_containers(value) for key, value in output.items()}
    if isinstance(output, tuple) and hasattr(output, "_fields"):  # TorchScript knows no class of the user's
        return {name: _plain_containers(value) for name, value in zip(output._fields, output, strict=True)}
    if isinstance(output, tuple):
        return tuple(_plain_containers(value) for value in output)
    return [_plain_containers(value) for value in output] if isinstance(output, list) else output


class _Recorder(TorchFunctionMode):
    """Sees every function of torch that is called while it is active, and every submodule by its hooks."""

    def __init__(self, model: nn.Module, opaque: Collection[str]) -> None:
        super().__init__()
        self.recording = Recording(0)
        self._model = model
        self._opaque = frozenset(opaque)
        self._references: Any = WeakTensorKeyDictionary()
        named = (*model.named_parameters(), *model.named_buffers())
        self._attributes = {id(tensor): name for name, tensor in named}
        self._running: list[str] = []
        self._leaf_arguments: list[tuple[Any, Any]] = []
        self._keeping = False

    def add_inputs(self, inputs: Mapping[str, Tensor]) -> None:
        for name, value in inputs.items():
            self.recording.batch = len(value)
            self._append(Operation(Call("placeholder", name), Place("", ""), from_input=True), value)

    def reference(self, value: Any) -> Any:
        """Return what stands for a tensor in the recording; anything else stands for itself."""
        if not isinstance(value, Tensor):
            return value
        found = self._references.get(value)
        if found is not None:
            return found
        name = self._attributes.get(id(value))
        return Constant(value.detach().clone()) if name is None else Attribute(name)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = {key: value for key, value in (kwargs or {}).items() if key != "out" or value is not None}
        if self._leaf_arguments or self._keeping:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name == "__get__":
            return self._property(func, args)
        given = [value for value in leaves((args, kwargs)) if isinstance(value, Tensor)]
        from_input = name not in _LIKE and any(map(self._from_input, given))
        if name in _READS and from_input:
            place = self._place()
            raise UntraceableError(
                "A traced forward pass must not branch or loop on the values of its input, but "
                f"{name.strip('_')}() reads a tensor {place}.",
                module=place.module,
            )
        in_place = is_in_place(name, kwargs)
        if in_place and "out" in kwargs and from_input:
            self._refuse(f"{name}() writes its result into another tensor")
        taken, named = map_values(self.reference, args), map_values(self.reference, kwargs)
        result = func(*args, **kwargs)
        if not in_place and not any(isinstance(value, Tensor) for value in leaves(result)):
            return result
        if name.endswith("dropout") and not kwargs.get("training", True) and isinstance(result, Tensor):
            self._references[result] = self.reference(given[0])
            return result
        call = _written_call(name, taken) or canonical(func, taken, named)
        random = name in _RANDOM or (name.endswith("dropout") and bool(kwargs.get("training")))
        changed = args[0] if in_place and isinstance(args[0], Tensor) else None
        former = None if changed is None else self._references.get(changed)
        operation = Operation(call, self._place(), from_input=from_input, random=random)
        self._append(operation, result if changed is None else changed)
        if changed is not None and former is not None:
            self._follow_change(changed, former)
        return result

    def _property(self, getter: Any, args: tuple[Any, ...]) -> Any:
        """Handle `x.shape`, `x.T` and their like: those that return a tensor are operations or the tensor itself."""
        tensor = args[0]
        result = getter(*args)
        if not isinstance(result, Tensor) or tensor is result:
            return result
        name = getter.__self__.__name__
        reference = self.reference(tensor)
        if name in {"T", "mT"} and tensor.ndim > 1:
            axes = tuple(reversed(range(tensor.ndim))) if name == "T" else (*range(tensor.ndim - 2), -1, -2)
            call = Call("call_function", torch.permute, (reference, axes))
        elif name == "data" and isinstance(reference, Reference):
            self._references[result] = reference
            return result
        else:
            call = Call("call_function", getattr, (reference, name))
        self._append(Operation(call, self._place(), from_input=self._from_input(tensor)), result)
        return result

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hear of every submodule's calls within the block."""
        with ExitStack() as stack:
            for name, module in self._model.named_modules():
                stack.enter_context(hooked(self._hooks(name, module)))
            yield

    def _hooks(self, name: str, module: nn.Module) -> Iterator[RemovableHandle]:
        leaf = (bool(name) and is_leaf(module)) or name in self._opaque

        def enter(_module: nn.Module, args: Any, kwargs: Any) -> None:
            if leaf or self._leaf_arguments:
                references = map_values(self.reference, args), map_values(self.reference, kwargs)
                self._leaf_arguments.append(references)
            else:
                self._running.append(name)

        def leave(_module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            if not self._leaf_arguments:
                self._running.pop()
                return
            taken, named = self._leaf_arguments.pop()
            if self._leaf_arguments:
                return
            given = [value for value in leaves((args, kwargs)) if isinstance(value, Tensor)]
            from_input = any(map(self._from_input, given))
            former = self._references.get(result) if isinstance(result, Tensor) else None
            call = Call("call_module", name, taken, named or None)
            self._append(Operation(call, self._place(name), from_input=from_input), result)
            if getattr(module, "inplace", False) and former is not None:
                self._follow_change(result, former)

        yield module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True)
        yield module.register_forward_hook(leave, with_kwargs=True)

    def _append(self, operation: Operation, result: Any) -> None:
        index = len(self.recording.operations)
        self.recording.operations.append(operation)
        if not operation.from_input:
            self._keeping = True  # the copies are not the network's
            operation.result = map_values(_kept, result)
            self._keeping = False
        self.recording.shapes.append(map_values(_shape, result))
        self._remember(result, index, ())

    def _remember(self, result: Any, index: int, item: tuple[Any, ...]) -> None:
        if isinstance(result, Tensor):
            self._references[result] = Reference(index, item)
        elif isinstance(result, (tuple, list)):
            for position, value in enumerate(result):
                self._remember(value, index, (*item, position))
        elif isinstance(result, dict):
            for key, value in result.items():
                self._remember(value, index, (*item, key))

    def _from_input(self, tensor: Tensor) -> bool:
        found = self._references.get(tensor)
        return found is not None and self.recording.operations[found.operation].from_input

    def _follow_change(self, changed: Tensor, former: Reference) -> None:
        """Record that a tensor changed in place: the tensors that share its memory now come from the changed one.

        Args:
            changed: the tensor, which already stands for its new value.
            former: what it stood for before.
        """
        sharing = [(tensor, reference) for tensor, reference in list(self._references.items()) if tensor is not changed]
        sharing = [(tensor, reference) for tensor, reference in sharing if _storage(tensor) == _storage(changed)]
        renewed = {former: self._references[changed]}
        owner: Reference | None = former
        while owner is not None:  # up, to the tensors that the changed one is a view of
            owner = self._renew_original(owner, sharing, renewed)
        for tensor, reference in sorted(sharing, key=lambda pair: pair[1].operation):  # down, to all views of those
            call = self.recording.operations[reference.operation].call
            if reference in renewed:
                self._references[tensor] = renewed[reference]
            elif call.args and call.args[0] in renewed and not reference.item:
                self._append_call(replace(call, args=(renewed[call.args[0]], *call.args[1:])), tensor)
                renewed[reference] = self._references[tensor]
            elif reference.operation != former.operation:  # the parts of one split do not overlap
                self._refuse("a tensor is changed in place while another view of its memory is in use")

    def _renew_original(
        self, view: Reference, sharing: list[tuple[Tensor, Reference]], renewed: dict[Reference, Reference]
    ) -> Reference | None:
        """Record the tensor that a changed view was taken of, if it is still in use, and return what it stood for."""
        call = self.recording.operations[view.operation].call
        for tensor, reference in sharing:
            if call.args and reference == call.args[0]:
                parts = self.recording.shapes[view.operation]
                self._append_call(inverse_view(call, view, renewed[view], tuple(tensor.shape), parts), tensor)
                renewed[reference] = self._references[tensor]
                return reference
        return None

    def _append_call(self, call: Call | None, result: Tensor) -> None:
        if call is None:
            self._refuse("a tensor is changed in place through a view that cannot be undone")
            return
        given = [value for value in leaves(call.args) if isinstance(value, Reference)]
        from_input = any(self.recording.operations[value.operation].from_input for value in given)
        self._append(Operation(call, self._place(), from_input=from_input), result)

    def _refuse(self, what: str) -> None:
        place = self._place()
        raise UntraceableError(f"Tracing follows every tensor, but {what} {place}.", module=place.module)

    def _place(self, leaf: str | None = None) -> Place:
        owner = leaf if leaf is not None else (self._running[-1] if self._running else "")
        return Place(owner, code_line(sys._getframe(1), NOT_THE_MODEL))  # noqa: SLF001  the stack of the forward pass


def _written_call(name: str, args: tuple[Any, ...]) -> Call | None:
    """Return the call for a function that writes into its argument, as one that returns the changed tensor."""
    if name == "__setitem__":
        return Call("call_function", replace_items, args)
    if name in {"copy_", "fill_", "zero_"}:
        return Call("call_function", replace_items, (args[0], ..., args[1] if len(args) > 1 else 0.0))
    return None


def _kept(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value  # a later step may write into it


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _storage(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # sparse tensors and wrappers have no storage of their own
        return id(tensor)
