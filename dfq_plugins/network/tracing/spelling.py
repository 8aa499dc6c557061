"""One spelling for every operation: torch has several for most, and each framework knows only some of them.

`x + y`, `x.add(y)`, `torch.add(x, other=y)` and `x.add_(y)` become `operator.add(x, y)`; arguments become positional
where the frameworks expect that.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Kind = Literal["placeholder", "call_module", "call_function", "call_method"]


@dataclass(frozen=True)
class Call:
    """What an fx node calls: the kind and target of the node, with its arguments."""

    kind: Kind
    target: Any
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """The name of the function, method or submodule, for messages."""
        return self.target if isinstance(self.target, str) else getattr(self.target, "__name__", str(self.target))


_OPERATORS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "truediv": operator.truediv,
    "matmul": operator.matmul,
    "neg": operator.neg,
    "pow": operator.pow,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": operator.truediv,
    "true_divide": operator.truediv,
    "negative": operator.neg,
    "floordiv": operator.floordiv,
    "floor_divide": operator.floordiv,
    "mod": operator.mod,
    "getitem": operator.getitem,
    "setitem": operator.setitem,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "eq": operator.eq,
    "ne": operator.ne,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "invert": operator.invert,
}
_REFLECTED = {"radd": "add", "rsub": "sub", "rmul": "mul", "rdiv": "div", "rtruediv": "div", "rpow": "pow"}
_REFLECTED |= {"rmatmul": "matmul", "rfloordiv": "floordiv", "rmod": "mod", "rand": "and", "ror": "or", "rxor": "xor"}
_SCALED = {"add": torch.add, "sub": torch.sub, "subtract": torch.sub}
"""The functions that say a factor of the second operand."""
_OPERANDS = ("input", "other", "exponent", "mat2")

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "relu": functional.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softmax": functional.softmax,
    "log_softmax": functional.log_softmax,
    "prelu": functional.prelu,
    "flatten": torch.flatten,
    "transpose": torch.transpose,
    "swapaxes": torch.transpose,
    "swapdims": torch.transpose,
    "permute": torch.permute,
    "squeeze": torch.squeeze,
    "unsqueeze": torch.unsqueeze,
    "concat": torch.cat,
    "concatenate": torch.cat,
    "cat": torch.cat,
    "chunk": torch.chunk,
    "split": torch.split,
    "unbind": torch.unbind,
    "stack": torch.stack,
    "bmm": torch.bmm,
}
"""Operations written as functions: methods and second names of the same operation become these."""

_PARAMETERS: dict[Callable[..., Any], tuple[str, ...]] = {
    functional.relu: ("input", "inplace"),
    torch.sigmoid: ("input",),
    torch.tanh: ("input",),
    functional.prelu: ("input", "weight"),
    torch.flatten: ("input", "start_dim", "end_dim"),
    torch.transpose: ("input", "dim0", "dim1"),
    torch.permute: ("input", "dims"),
    torch.squeeze: ("input", "dim"),
    torch.unsqueeze: ("input", "dim"),
    torch.cat: ("tensors", "dim"),
    torch.chunk: ("input", "chunks", "dim"),
    torch.split: ("tensor", "split_size_or_sections", "dim"),
    torch.unbind: ("input", "dim"),
    torch.stack: ("tensors", "dim"),
    torch.bmm: ("input", "mat2"),
    torch.conv1d: ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    torch.conv2d: ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    torch.conv3d: ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    functional.linear: ("input", "weight", "bias"),
    functional.max_pool2d: (
        "input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices",
    ),
    functional.avg_pool2d: (
        "input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override",
    ),
    functional.adaptive_avg_pool2d: ("input", "output_size"),
    functional.batch_norm: (
        "input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps",
    ),
}  # fmt: skip
"""The parameters of the functions that the frameworks read by position."""

_OTHER_NAMES = {"axis": "dim", "axes": "dim", "axis0": "dim0", "axis1": "dim1", "keepdims": "keepdim", "x": "input"}
_IN_PLACE_METHODS = frozenset({"setitem"})


def is_in_place(name: str, kwargs: Mapping[str, Any]) -> bool:
    """Return whether a function of torch changes one of its arguments, from its name and its arguments.

    >>> is_in_place("add_", {}), is_in_place("__iadd__", {}), is_in_place("relu", {"inplace": True})
    (True, True, True)
    >>> is_in_place("__add__", {}), is_in_place("relu", {})
    (False, False)
    """
    bare = name.strip("_")
    dunder = name.startswith("__") and name.endswith("__")
    in_place_operator = dunder and bare.startswith("i") and (bare[1:] in _OPERATORS or bare[1:] == "div")
    ends_so = name.endswith("_") and not dunder
    return ends_so or in_place_operator or bare in _IN_PLACE_METHODS or bool(kwargs.get("inplace")) or "out" in kwargs


@dataclass(frozen=True)
class _Request:
    """A function of torch with its arguments, as the forward pass asked for it."""

    function: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def name(self) -> str:
        return getattr(self.function, "__name__", "")

    @property
    def bare(self) -> str:
        """The name without underscores, and without the `i` of an operator that works in place."""
        bare = self.name.strip("_")
        return bare[1:] if self.name.startswith("__i") and bare[1:] in _OPERATORS else bare

    @property
    def is_method(self) -> bool:
        return getattr(Tensor, self.name, None) is self.function

    @property
    def named(self) -> dict[str, Any]:
        """The keyword arguments under torch's own names."""
        return {_OTHER_NAMES.get(key, key): value for key, value in self.kwargs.items()}

    def as_it_is(self) -> Call:
        """Return the call as it was asked for."""
        if not self.is_method:
            return Call("call_function", self.function, self.args, self.kwargs or None)
        if self.name.startswith("__"):
            bare = self.name.strip("_")
            target = _OPERATORS.get(bare) or getattr(operator, bare, None) or getattr(operator, f"{bare}_", None)
            if target is not None:
                return Call("call_function", target, self.args, self.kwargs or None)
        return Call("call_method", self.name, self.args, self.kwargs or None)


def canonical(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
    """Return the call of one operation in the spelling that the frameworks know.

    Args:
        function: the function or method of torch that was called.
        args: its positional arguments.
        kwargs: its keyword arguments.
    """
    request = _Request(function, args, kwargs)
    if request.name.startswith("__") and request.bare in _REFLECTED:
        return Call("call_function", _OPERATORS[_REFLECTED[request.bare]], (args[1], args[0]))
    if request.bare in _OPERATORS:
        return _operator_call(request)
    spell = _OWN_SPELLING.get(request.bare, _function_call)
    return spell(request)


def _operator_call(request: _Request) -> Call:
    named = request.named
    operands = [*request.args, *(named.pop(key) for key in _OPERANDS if key in named)]
    alpha = named.pop("alpha", 1)
    if named:  # a rounding mode, another output: no operator says that
        return request.as_it_is()
    if alpha != 1:
        return Call("call_function", _SCALED[request.bare], tuple(operands), {"alpha": alpha})
    return Call("call_function", _OPERATORS[request.bare], tuple(operands))


def _reshape_call(request: _Request) -> Call:
    tensor, *sizes = (*request.args, *request.kwargs.values())
    if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
        sizes = list(sizes[0])
    if not all(isinstance(size, int) for size in sizes):  # a view of the bytes as another type
        return request.as_it_is()
    # Not `view`: the frameworks may change the memory format of the tensor.
    return Call("call_method", "reshape", (tensor, tuple(sizes)))


def _mean_call(request: _Request) -> Call:
    given = {**dict(zip(("input", "dim", "keepdim"), request.args, strict=False)), **request.named}
    tensor, axes, kept = given.pop("input"), given.pop("dim", None), given.pop("keepdim", False)
    named = ({"keepdim": True} if kept else {}) | given
    if axes is None:
        return Call("call_method", "mean", (tensor,), named or None)
    axes = tuple(axes) if isinstance(axes, (tuple, list)) else axes
    return Call("call_method", "mean", (tensor, axes), named or None)


def _function_call(request: _Request) -> Call:
    args, named = request.args, request.named
    named.pop("inplace", None)
    known = request.is_method or _belongs_to_torch(request.function)
    target = _FUNCTIONS.get(request.bare, request.function) if known else request.function
    if target is request.function and request.is_method:
        name = request.name
        return Call("call_method", name.removesuffix("_") if _has_plain_twin(name) else name, args, named or None)
    if target is torch.permute and len(args) > 1 and not isinstance(args[1], (tuple, list)):
        args = (args[0], tuple(args[1:]))
    parameters = _PARAMETERS.get(target)
    if parameters is None:
        return Call("call_function", _without_in_place(target), args, named or None)
    values = list(args)
    for parameter in parameters[len(values) :]:  # by position, up to the first gap
        if parameter not in named:
            break
        values.append(named.pop(parameter))
    return Call("call_function", target, tuple(values), named or None)


def _belongs_to_torch(function: Any) -> bool:
    return (getattr(function, "__module__", None) or "torch").split(".")[0] == "torch"


def _has_plain_twin(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__") and hasattr(Tensor, name.removesuffix("_"))


def _without_in_place(target: Any) -> Any:
    """Return the function that does not change its argument: `F.relu` for `F.relu_`, if there is one."""
    name = getattr(target, "__name__", "")
    if not name.endswith("_") or name.endswith("__"):
        return target
    for module in (functional, torch):
        if getattr(module, name, None) is target and hasattr(module, name.removesuffix("_")):
            return getattr(module, name.removesuffix("_"))
    return target


_OWN_SPELLING: dict[str, Callable[[_Request], Call]] = {
    "view": _reshape_call,
    "reshape": _reshape_call,
    "mean": _mean_call,
    "size": _Request.as_it_is,
    "dim": _Request.as_it_is,
}
