"""The records and base classes that the host, generators and calibrators share. Does not import torch."""

from __future__ import annotations

import difflib
import math
import operator
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from dfq_plugins.errors import DataError, PluginError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    import torch
    from torch import fx, nn

Inputs: TypeAlias = Any
"""The inputs of a network: a tensor `(samples, *shape)`, or a dictionary of them by name where it has several.

Only the specification tells which, so the type is open: code for networks with one input uses them as a tensor.
"""

Call = Literal["keywords", "positional", "dictionary"]
"""How a network takes its inputs: as `model(image=a, meta=b)`, `model(a, b)` or `model({"image": a, "meta": b})`."""

SINGLE_INPUT = "input"
"""Name of the only input of a network, in exported files and messages."""


@dataclass(frozen=True)
class InputSpec:
    """Specification of the network's input, or of one of several; see `NetworkSpec`.

    The network takes `(raw - mean) / std` per channel, where `raw` lies in `value_range`.

    Args:
        shape: shape of one sample, channels first, without the batch axis: `(3, 32, 32)`.
        mean: mean subtracted from the raw values, one per channel; None if the normalization is not known.
        std: standard deviation that the raw values are divided by, one per channel; None if and only if `mean` is None.
        value_range: lowest and highest raw value (in network units if mean is None); None if unbounded or unknown.
        num_classes: number of class logits, per sample or at each position of a class map; 0 if the network is not a
            classifier; None if that is not known. It is never guessed from the shape of an output.
        standardized_samples: whether each sample has mean 0 and variance 1 over all of its values, as frames of audio
            and other signals often do. It replaces mean, std and range: such samples have no fixed ones.

    Raises:
        UsageError: a size is not a positive whole number, a value is not finite, mean and std do not fit the channels,
            the range is empty, the number of classes is 1 or negative, or standardized samples have one value or a
            mean, std or range.

    >>> InputSpec((1, 8, 8), (0.5,), (0.25,), (0.0, 1.0)).bounds
    ((-2.0,), (2.0,))
    """

    shape: tuple[int, ...]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    value_range: tuple[float, float] | None = None
    num_classes: int | None = None
    standardized_samples: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", _sizes(self.shape))
        for name, example in (("mean", "(0.5,)"), ("std", "(0.25,)"), ("value_range", "(0, 1)")):
            object.__setattr__(self, name, _finite_numbers(name, getattr(self, name), example))
        if (self.mean is None) != (self.std is None):
            raise UsageError("mean and std go together: give both or neither.")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != self.channels:
                raise UsageError(f"{name} needs one value per channel ({self.channels}), got {len(values)}: {values}.")
        if self.std is not None and min(self.std) <= 0:
            raise UsageError(f"std must be positive, got {self.std}.")
        if self.value_range is not None and (len(self.value_range) != 2 or self.value_range[0] >= self.value_range[1]):  # noqa: PLR2004
            raise UsageError(
                f"value_range must be increasing, got {self.value_range}. Give (lowest, highest), e.g. (0, 1)."
            )
        object.__setattr__(self, "num_classes", _class_count(self.num_classes))
        if self.standardized_samples and (self.mean is not None or self.value_range is not None):
            raise UsageError(
                "standardized_samples means that each sample is normalized by its own mean and standard deviation, so "
                f"mean, std and value_range do not apply, got {self.mean}, {self.std}, {self.value_range}. Omit them."
            )
        if self.standardized_samples and math.prod(self.shape) == 1:
            raise UsageError(
                f"A sample of one value has no variance, so it cannot be standardized, got the shape {self.shape}. "
                "Omit standardized_samples."
            )

    @property
    def named(self) -> dict[str, InputSpec]:
        """The specification of each input by name: of this one, as "input"."""
        return {SINGLE_INPUT: self}

    @property
    def values(self) -> int:
        """Number of values in one sample."""
        return math.prod(self.shape)

    def arguments(self, inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the positional and the keyword arguments with which the network takes these inputs."""
        return (inputs,), {}

    def run(self, network: Callable[..., Any], inputs: Inputs) -> Any:
        """Return the network's outputs for these inputs."""
        return network(inputs)

    def map(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """Return `function(spec, value, ...)` of each input, in the form of `inputs`; here of the only one.

        >>> InputSpec((3,)).map(lambda spec, scale: scale * spec.channels, 2)
        6
        """
        return function(self, *inputs)

    @property
    def channels(self) -> int:
        """Number of channels: the first size of the shape."""
        return self.shape[0]

    @property
    def bounds(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Lowest and highest network input per channel, or None if the range is unknown."""
        if self.value_range is None:
            return None
        mean = self.mean or (0.0,) * self.channels
        std = self.std or (1.0,) * self.channels
        low, high = ([(edge - m) / s for m, s in zip(mean, std, strict=True)] for edge in self.value_range)
        return tuple(low), tuple(high)

    @property
    def pad_value(self) -> tuple[float, ...]:
        """Fill value for padding when an input is shifted or cropped, per channel: the lowest value, or 0 if unknown.

        >>> InputSpec((1, 8), (0.5,), (0.25,), (0.0, 1.0)).pad_value
        (-2.0,)
        """
        return (0.0,) * self.channels if self.bounds is None else self.bounds[0]

    @property
    def standardized(self) -> bool:
        """Whether each channel of normalized data has mean 0 and variance 1, so that the input's statistics are known.

        Values between `low` and `high` with a given mean have at most the variance `(mean - low) (high - mean)`, half
        the range where the mean is in the middle (Bhatia and Davis 2000). A std that is not below that cannot come from
        the data: it is only rescaling, such as `x / 127.5 - 1`.

        >>> InputSpec((1, 8), (0.5,), (0.25,), (0.0, 1.0)).standardized
        True
        >>> InputSpec((1, 28, 28), (0.1307,), (0.3081,), (0.0, 1.0)).standardized  # MNIST
        True
        >>> InputSpec((1, 8), (127.5,), (127.5,), (0.0, 255.0)).standardized
        False
        """
        if self.std is None:
            return False
        if self.value_range is None:
            return True
        low, high = self.value_range
        return all(std**2 < (mean - low) * (high - mean) for mean, std in zip(self.mean or (), self.std, strict=True))

    @property
    def input_range(self) -> tuple[float, float] | None:
        """Lowest and highest network input over all channels: the range of the input quantizer."""
        return None if self.bounds is None else (min(self.bounds[0]), max(self.bounds[1]))

    def check_batch(self, batch: Inputs) -> None:
        """Reject inputs that the network cannot take.

        Args:
            batch: inputs `(samples, *shape)`.

        Raises:
            DataError: the shape is wrong, or a value is NaN or infinite.
        """
        if isinstance(batch, Mapping):
            raise DataError(
                f"The network takes one input of shape {self.shape}, got inputs by name: {', '.join(batch)}. Give a "
                "tensor, or a specification of each input by name."
            )
        _check_tensor(self, batch, "A batch of inputs", "Inputs")


@dataclass(frozen=True)
class NetworkSpec:
    """Specification of a network with several inputs: that of each input by name, and how the network takes them.

    It can be given wherever an `InputSpec` can. Inputs are then dictionaries of tensors by name.

    Args:
        inputs: the specification of each input, by the name of the parameter of `forward`, or by its key in the
            dictionary that the network takes. Parameters that are not named keep their defaults.
        num_classes: number of class logits; None if the network is not a classifier.
        call: how the network takes its inputs.
        order: names in the order of the inputs, also that of positional arguments; that of `inputs` if empty.

    Raises:
        UsageError: there is no input, a name is not usable, or one of `inputs` has its own number of classes.

    >>> spec = NetworkSpec({"image": InputSpec((3, 8, 8)), "meta": InputSpec((4,))})
    >>> spec.values, spec.run(lambda image, meta: image + meta, {"image": 1, "meta": 2})
    (196, 3)
    """

    inputs: Mapping[str, InputSpec] = field(hash=False)
    num_classes: int | None = None
    call: Call = "keywords"
    order: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.inputs or not all(isinstance(spec, InputSpec) for spec in self.inputs.values()):
            raise UsageError(
                'A network with several inputs needs an InputSpec for each, by name: {"image": InputSpec((3, 32, 32)), '
                f'"meta": InputSpec((4,))}}, got {dict(self.inputs)}.'
            )
        if wrong := [name for name in self.inputs if not _INPUT_NAME.fullmatch(name)]:
            raise UsageError(
                f"The name of an input consists of letters, digits, '_', '-' and '.', got {wrong[0]!r}. Give the name "
                "of the parameter of forward, or of the key in its dictionary."
            )
        if counted := [name for name, spec in self.inputs.items() if spec.num_classes is not None]:
            raise UsageError(
                f"The number of classes belongs to the network, but the input {counted[0]!r} has one. Give num_classes "
                "to NetworkSpec."
            )
        if self.call not in ("keywords", "positional", "dictionary"):
            raise UsageError(f"call must be keywords, positional or dictionary, got {self.call!r}.")
        object.__setattr__(self, "num_classes", _class_count(self.num_classes))
        order = self.order or tuple(self.inputs)
        if sorted(order) != sorted(self.inputs):
            raise UsageError(f"order must name each input once ({', '.join(self.inputs)}), got {', '.join(order)}.")
        object.__setattr__(self, "order", tuple(order))
        object.__setattr__(self, "inputs", {name: self.inputs[name] for name in order})

    @property
    def named(self) -> dict[str, InputSpec]:
        """The specification of each input by name, in order."""
        return dict(self.inputs)

    @property
    def shape(self) -> dict[str, tuple[int, ...]]:
        """The shape of one sample of each input, by name."""
        return {name: spec.shape for name, spec in self.inputs.items()}

    @property
    def values(self) -> int:
        """Number of values in one sample, of all inputs together."""
        return sum(spec.values for spec in self.inputs.values())

    def arguments(self, inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the positional and the keyword arguments with which the network takes these inputs."""
        ordered = {name: inputs[name] for name in self.order}
        if self.call == "keywords":
            return (), ordered
        return ((ordered,) if self.call == "dictionary" else tuple(ordered.values())), {}

    def run(self, network: Callable[..., Any], inputs: Inputs) -> Any:
        """Return the network's outputs for these inputs."""
        positional, keywords = self.arguments(inputs)
        return network(*positional, **keywords)

    def map(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """Return `function(spec, value, ...)` of each input, by name.

        >>> NetworkSpec({"a": InputSpec((3,)), "b": InputSpec((4,))}).map(lambda spec, scale: spec.channels * scale, {
        ...     "a": 1, "b": 10})
        {'a': 3, 'b': 40}
        """
        return {name: function(spec, *(given[name] for given in inputs)) for name, spec in self.inputs.items()}

    def check_batch(self, batch: Inputs) -> None:
        """Reject inputs that the network cannot take.

        Args:
            batch: inputs `(samples, *shape)` by name.

        Raises:
            DataError: an input is missing or unknown, its shape is wrong, a value is NaN or infinite, or the inputs
                have different numbers of samples.
        """
        names = ", ".join(self.inputs)
        if not isinstance(batch, Mapping):
            raise DataError(
                f"The network takes several inputs ({names}), got one of type {type(batch).__name__}. Give batches as "
                "dictionaries of tensors by name."
            )
        if set(batch) != set(self.inputs):
            raise DataError(
                f"A batch must hold the inputs {names}, got {', '.join(map(str, batch))}. Give each input under its "
                "name in the specification."
            )
        for name, spec in self.inputs.items():
            _check_tensor(spec, batch[name], f"A batch of {name!r}", f"Values of {name!r}")
        if len({len(tensor) for tensor in batch.values()}) > 1:
            counts = ", ".join(f"{name} has {len(tensor)}" for name, tensor in batch.items())
            raise DataError(f"All inputs of a batch must have the same number of samples, but {counts}.")


def _sizes(given: Any) -> tuple[int, ...]:
    """Return a shape as whole numbers.

    Raises:
        UsageError: it is empty, or a size is not a positive whole number.
    """
    sizes = tuple(_whole(size) for size in given) if isinstance(given, Iterable) else ()
    if not sizes or any(size is None or size < 1 for size in sizes):
        raise UsageError(f"An input shape needs positive sizes, channels first, got {given}. Give e.g. (3, 32, 32).")
    return tuple(size for size in sizes if size is not None)


def _whole(value: Any) -> int | None:
    """Return a whole number; None for anything else, a truth value included."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def _finite_numbers(name: str, given: Any, example: str) -> Any:
    """Return finite numbers as a tuple of floats; None stays None.

    Raises:
        UsageError: it is not a sequence of numbers, or one is NaN or infinite.
    """
    if given is None:
        return None
    try:
        numbers = tuple(math.nan if isinstance(value, bool) else float(value) for value in given)
    except (TypeError, ValueError):
        numbers = (math.nan,)
    if not all(map(math.isfinite, numbers)):
        raise UsageError(f"{name} needs finite numbers, got {given}. Give e.g. {example}, or None if it is not known.")
    return numbers


def _class_count(given: Any) -> int | None:
    """Return the number of classes, or None.

    Raises:
        UsageError: it is not a whole number, or it is 1 or negative.
    """
    if given is None:
        return None
    classes = _whole(given)
    if classes is None or classes == 1 or classes < 0:
        raise UsageError(
            f"A classifier has at least 2 class logits, got num_classes={given}. Give 0 for a network that is "
            "not a classifier, also if it has a single logit."
        )
    return classes


def _check_tensor(spec: InputSpec, batch: torch.Tensor, batch_name: str, values_name: str) -> None:
    if tuple(batch.shape[1:]) != spec.shape or not batch.ndim:
        expected = ", ".join(map(str, ("samples", *spec.shape)))
        raise DataError(
            f"{batch_name} must have the shape ({expected}), got {tuple(batch.shape)}. "
            "Fix the data or the input specification."
        )
    if not bool(batch.isfinite().all()):
        raise DataError(
            f"{values_name} must be finite, but a batch holds NaN or infinity. Remove or repair those samples."
        )


_INPUT_NAME = re.compile(r"[A-Za-z_][\w.-]*")

Specification: TypeAlias = InputSpec | NetworkSpec
"""The specification of a network's inputs."""

GivenSpec: TypeAlias = InputSpec | NetworkSpec | Mapping[str, InputSpec]
"""A specification as callers may give it: a mapping of `InputSpec` by name stands for a `NetworkSpec`."""


def as_specification(given: GivenSpec | None) -> Specification | None:
    """Return the record of a specification that a caller gave; None stays None.

    Raises:
        UsageError: it is not a specification.

    >>> as_specification({"image": InputSpec((3, 8, 8)), "meta": InputSpec((4,))}).order
    ('image', 'meta')
    """
    if given is None or isinstance(given, InputSpec | NetworkSpec):
        return given
    if isinstance(given, Mapping):
        return NetworkSpec(given)
    raise UsageError(
        f"A specification is an InputSpec, a NetworkSpec or a mapping of InputSpec by name, got {type(given).__name__}."
    )


class Batch(NamedTuple):
    """Inputs `(batch, *shape)` with class labels `(batch,)` and the teacher's outputs by name, if known.

    The inputs of a network with several are a dictionary of tensors by name. `outputs` holds one tensor `(batch, ...)`
    per output, by the path to it; a network that returns one tensor has one output, named "output". A single sample of
    a data set is the same record without the batch axis.
    """

    inputs: Inputs
    labels: torch.Tensor | None = None
    outputs: Mapping[str, torch.Tensor] | None = None


@dataclass(frozen=True)
class ProgressEvent:
    """Progress of a run: `completed` of `total` units of `stage`, with the latest metrics.

    `fraction` is the progress of the stage, 0 to 1, if it is known more precisely than in whole units.
    """

    stage: str
    completed: int
    total: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    fraction: float | None = None

    @property
    def position(self) -> float:
        """Number of completed units, including the completed part of the current one.

        >>> ProgressEvent("synthesize", 3, 8, fraction=0.4).position
        3.2
        """
        return self.completed if self.fraction is None else self.fraction * self.total


@dataclass
class TimeBudget:
    """Time budget for one shard. The generator records in it how many iterations it used.

    Args:
        seconds: time for this shard, from now.
        run_seconds: time for all shards that this process may still synthesize, including this one.
        iterations: the iterations actually used, the minimum over the samples; None if there are none.
    """

    seconds: float
    run_seconds: float
    iterations: int | None = None

    def after(self, preparation: float) -> float:
        """Return the seconds left for the shard after the run spent `preparation` seconds on work for all shards.

        >>> TimeBudget(25.0, 100.0).after(40.0)
        15.0
        """
        share = 1 - preparation / self.run_seconds if self.run_seconds else 0.0
        return max(0.0, self.seconds * share)


class PluginBase(ABC):  # noqa: B024  its subclasses have the abstract methods
    """Base class of the objects that plugins build.

    Optional behavior is defined by methods with defaults. A public name that is nearly one of the methods that the host
    calls is treated as a misspelling.
    """

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Reject a misspelled method.

        Raises:
            PluginError: a public name in the class is nearly that of a method that the host calls.
        """
        super().__init_subclass__(**arguments)
        if cls.__module__ == __name__:
            return
        called = [name for base in cls.__mro__ if base.__module__ == __name__ for name in vars(base)]
        inherited = {name for base in cls.__mro__[1:] for name in vars(base)}
        for name in vars(cls):
            if name.startswith("_") or name in inherited:
                continue
            if hint := difflib.get_close_matches(name, called, n=1, cutoff=_NEARLY):
                raise PluginError(
                    f"{cls.__qualname__} defines {name!r}, which is never called. Did you mean {hint[0]!r}? Otherwise, "
                    "start the name with an underscore."
                )


_NEARLY = 0.85
"""Similarity from which a name counts as misspelled: 'check_suported' has 0.97, 'batches' for 'batch' 0.83."""


class DataGenerator(PluginBase):
    """Synthesizes inputs from a trained model. Built from an options record by its entry's factory.

    Attributes:
        conditional: whether it synthesizes inputs for given classes, and yields labels.
        timed: whether it respects a `budget`.
        keeps_range: whether its values stay within the bounds of the specification, which the host then checks.
        several_inputs: whether its methods also take a `NetworkSpec`.
    """

    conditional: bool = False
    timed: bool = False
    keeps_range: bool = True
    several_inputs: bool = False

    @abstractmethod
    def generate(
        self,
        model: nn.Module,
        spec: InputSpec,
        *,
        num_samples: int,
        batch_size: int,
        rng: torch.Generator,
        report: Callable[[ProgressEvent], None],
        budget: TimeBudget | None = None,
    ) -> Iterator[Batch]:
        """Yield batches with exactly `num_samples` samples in total.

        Args:
            model: a private frozen copy in eval mode; may be changed.
            spec: the input to synthesize.
            num_samples: total number of samples to yield, at least 1.
            batch_size: the largest batch to yield.
            rng: the only source of randomness.
            report: call it after each step.
            budget: the time limit; only passed to a `timed` generator.
        """

    def check_supported(self, model: nn.Module, spec: InputSpec) -> None:
        """Reject a model or specification that the generator does not support, before anything is written.

        Raises:
            DfqError: the model or specification is not supported; use the subclass that fits.
        """

    def resolved_options(self, options: Any) -> Any:
        """Return the options that the data set should record, e.g. with the checksum of a file that they name.

        Args:
            options: the record that the generator was built from.
        """
        return options


class LearningGenerator(PluginBase):
    """Generates the inputs for fine-tuning while it learns from the student.

    Before each training step, the loop calls `progress(share)`, `feedback(student)` and then `batch(size)`. The
    generator controls its own schedule: one that learns every ten steps ignores nine calls of `feedback` and returns
    the same inputs in the meantime.

    Attributes:
        several_inputs: whether its methods also take a `NetworkSpec`.
    """

    several_inputs: bool = False

    @abstractmethod
    def begin(self, teacher: nn.Module, spec: InputSpec, rng: torch.Generator) -> None:
        """Prepare for one run.

        Args:
            teacher: a private frozen copy in eval mode; gradients flow through it to its inputs.
            spec: the input to generate.
            rng: the only source of randomness, in all calls.
        """

    @abstractmethod
    def feedback(self, student: nn.Module) -> None:
        """Learn from the current student. It must not be changed; gradients left on it are cleared."""

    @abstractmethod
    def batch(self, size: int) -> Batch:
        """Return the inputs of the next step, `(size, *shape)`, with labels if they were made for given classes."""

    @abstractmethod
    def state(self) -> Mapping[str, torch.Tensor]:
        """Return everything except `rng` that later calls depend on, for a checkpoint."""

    @abstractmethod
    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restore the state that `state` returned; called after `begin`."""

    def check_supported(self, model: nn.Module, spec: InputSpec) -> None:
        """Reject a model or specification that the generator does not support, before anything is calibrated.

        Raises:
            DfqError: the model or specification is not supported; use the subclass that fits.
        """

    def listen(self, report: Callable[[ProgressEvent], None]) -> None:
        """Receive the progress function, before `begin`; useful if the first batch takes long."""

    def progress(self, share: float) -> None:
        """Receive the completed share of the training, 0 to 1; useful for a learning rate schedule over all of it."""


class QuantizerHandle(ABC):
    """Access to one quantizer of a prepared network, for `Calibrator.quantized_view`.

    The quantizer computes `scale * clamp(round(x / scale), lowest, highest)`.

    Args:
        name: its name in messages and checkpoints.
        lowest: its lowest integer.
        highest: its highest integer.
        fixed: whether its scale must stay as it is: it is known, or restricted to some values.
    """

    def __init__(self, name: str, *, lowest: int, highest: int, fixed: bool) -> None:
        self.name, self.lowest, self.highest, self.fixed = name, lowest, highest, fixed

    @property
    def key(self) -> int:
        """The identity of what stores the scale; quantizers that share it have the same key."""
        return id(self)

    @abstractmethod
    def scale(self) -> torch.Tensor:
        """Return a copy of the scale, in a shape that broadcasts over the quantized tensor."""

    @abstractmethod
    def set_scale(self, scale: torch.Tensor) -> None:
        """Store a scale of the shape that `scale` returns, in place."""

    @abstractmethod
    def replaced(
        self, quantize: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    ) -> AbstractContextManager[None]:
        """Within the block, let a function quantize instead: it returns the quantized values and their scale."""


@dataclass(frozen=True)
class QuantizedLayer:
    """A module of a prepared network that holds quantizers, and is called as one operation.

    Args:
        name: its name in the network.
        module: the module; with a weight quantizer, it has a `weight`, and a `bias`, which may be None.
        weight: its weight quantizer, if it has one.
        activations: its other quantizers; modules that share one also share its handle.
    """

    name: str
    module: nn.Module
    weight: QuantizerHandle | None
    activations: tuple[QuantizerHandle, ...]


@dataclass(frozen=True)
class QuantizedView:
    """The quantizers of a prepared network, as `reconstruct` reads, replaces and sets them.

    Args:
        layers: the modules that hold quantizers.
        graph: the network as a graph that calls each of these modules directly; None: the host traces the network.
        floating: returns a context in which the network computes in float.
        plain: turns the framework's tensors into torch's, and returns any other value as it is.
    """

    layers: tuple[QuantizedLayer, ...]
    floating: Callable[[], AbstractContextManager[None]]
    graph: fx.GraphModule | None = None
    plain: Callable[[Any], Any] = lambda value: value


class Calibrator(PluginBase):
    """Quantizes a float model with one framework, in the steps that torch.ao defines.

    State for the later steps is stored in the module that `prepare` returns, not in the calibrator: the later steps
    also work with another calibrator object, or with a deep copy of the module.

    Attributes:
        several_inputs: whether its methods also take a `NetworkSpec`.
    """

    several_inputs: bool = False

    @abstractmethod
    def prepare(self, model: nn.Module, spec: InputSpec, recipe: Recipe, *, training: bool) -> nn.Module:
        """Return a copy of `model` with the framework's observers or fake quantizers inserted."""

    @abstractmethod
    def calibrate(self, prepared: nn.Module, batches: Iterable[Inputs]) -> None:
        """Let the framework record the ranges of every batch, in place."""

    @abstractmethod
    def convert(self, prepared: nn.Module) -> nn.Module:
        """Return the framework's native quantized model."""

    @abstractmethod
    def describe(self, converted: nn.Module) -> Coverage:
        """Report which tensors are quantized and how, and which modules stay in float."""

    @abstractmethod
    def export(self, converted: nn.Module, spec: InputSpec, path: Path) -> tuple[Artifact, ...]:
        """Write the framework's artifacts to the folder `path`, run each, and compare it with the torch model.

        Raises:
            ArtifactError: an artifact does not agree with the torch model; the error lists those that passed and those
                that did not, see `dfq_plugins.quantization.artifacts`.
        """

    def scale_parameters(self, prepared: nn.Module) -> Iterable[nn.Parameter]:  # noqa: ARG002
        """Return the parameters that are learned quantizer scales, which have a separate learning rate."""
        return ()

    def freeze_ranges(self, prepared: nn.Module) -> None:
        """Stop observing activation ranges, in place; called late in training, possibly twice."""

    def quantized_view(self, prepared: nn.Module) -> QuantizedView:
        """Return the quantizers of a prepared network, so that `reconstruct` can learn roundings and scales.

        Called on a calibrated network, and on a copy of it that was never calibrated and computes in float.

        Raises:
            UsageError: the framework's quantizers cannot be set, or not with these options.
        """
        raise UsageError(
            f"{type(self).__name__} cannot reconstruct: it gives no access to the weights and scales of "
            f"{type(prepared).__name__}, as frameworks do not that round to stored integers. Use the calibrator "
            "pytorch-quantization, modelopt or brevitas, or omit reconstruct."
        )

    def load(self, path: Path) -> nn.Module:
        """Return a module that computes what an artifact of `export` computes, for `dfq_plugins.load_quantized`.

        Implement it together with the entry's `artifact_suffixes`. The file may come from anyone: read it without
        Python's pickle.

        Raises:
            UsageError: files of this framework cannot be loaded, or not those of this format.
            DataError: the file is damaged.
        """
        raise UsageError(
            f"{type(self).__name__} does not load the files that it exports, got {path}. Open it with the framework's "
            "own tools, or keep the converted model in Python."
        )


@dataclass(frozen=True)
class Recipe:
    """Bit widths of weights and activations.

    >>> Recipe.parse("w4a8")
    Recipe(weight_bits=4, activation_bits=8)
    >>> str(Recipe(8, 8))
    'w8a8'
    >>> Recipe.parse("binary")
    Recipe(weight_bits=1, activation_bits=32)
    """

    weight_bits: int
    activation_bits: int

    @classmethod
    def parse(cls, text: str) -> Recipe:
        """Parse `w<bits>a<bits>`, each from 1 to 32; 32 is float. `binary` is `w1a32`: two values, float activations.

        Raises:
            UsageError: the text does not have that form.
        """
        if text.strip().lower() == "binary":
            return cls(1, 32)
        match = re.fullmatch(r"w(\d{1,2})a(\d{1,2})", text.strip().lower())
        if match is None or not all(1 <= int(bits) <= 32 for bits in match.groups()):  # noqa: PLR2004
            raise UsageError(f"A recipe is w<bits>a<bits>, e.g. w8a8 or w4a8, got {text!r}.")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"w{self.weight_bits}a{self.activation_bits}"


@dataclass(frozen=True)
class NumberFormat:
    """How the values of one tensor are quantized.

    Args:
        bits: width of the integers, 1 for binary values.
        signed: whether the integers may be negative.
        symmetric: whether the zero point is 0.
        per_channel: whether there is one scale per channel instead of one for the whole tensor.
        stored_bits: width of the integers that store the values in the framework's model or file, at least `bits`.
        range: lowest and highest value that the integers represent; None if there is one range per channel, or if it is
            not known yet.
        exponent_bits: bits of the exponent, for a floating-point format; 0 for integers.

    Raises:
        UsageError: the values do not fit into `stored_bits`.
    """

    bits: int
    signed: bool
    symmetric: bool
    per_channel: bool
    stored_bits: int
    range: tuple[float, float] | None = None
    exponent_bits: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= self.stored_bits:
            raise UsageError(
                f"A number format needs 1 <= bits <= stored_bits, got bits={self.bits}, stored_bits={self.stored_bits}."
            )


TensorRole = Literal["weight", "input", "activation"]
"""Role of a quantized tensor: a layer's weight, a layer's input, or the output of a quantizer in the graph itself."""


@dataclass(frozen=True)
class QuantizedTensor:
    """One tensor of a quantized model.

    Args:
        name: name of the layer that has this weight or input, or of the module or node that quantizes an activation.
        kind: class of that module, or name of the operation.
        role: which of its tensors.
        format: how its values are quantized.
    """

    name: str
    kind: str
    role: TensorRole
    format: NumberFormat


@dataclass(frozen=True)
class Coverage:
    """Which tensors are quantized and how, and which modules stay in float, with the reason.

    >>> int4 = NumberFormat(4, signed=True, symmetric=True, per_channel=True, stored_bits=8)
    >>> coverage = Coverage((QuantizedTensor("conv", "Conv2d", "weight", int4),), (("pool", "no kernel"),))
    >>> coverage.layers, coverage.format_of("conv", "weight").bits, coverage.format_of("conv", "input")
    (('conv',), 4, None)
    """

    quantized: tuple[QuantizedTensor, ...]
    unquantized: tuple[tuple[str, str], ...] = ()

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers and operations with a quantized weight or input, each once, in order."""
        return tuple(dict.fromkeys(tensor.name for tensor in self.quantized if tensor.role != "activation"))

    def format_of(self, name: str, role: TensorRole) -> NumberFormat | None:
        """Return the format of one tensor; None if it is not quantized."""
        found = (tensor.format for tensor in self.quantized if (tensor.name, tensor.role) == (name, role))
        return next(found, None)


@dataclass(frozen=True)
class Check:
    """One check that an artifact passed, with its figures."""

    name: str
    detail: str


@dataclass(frozen=True)
class Artifact:
    """An exported file, with the checks that it passed."""

    path: Path
    format: str
    size_bytes: int
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class RejectedArtifact:
    """An artifact that failed its check or could not be created.

    Args:
        name: file name that it would have had.
        format: its format; empty if it is not known.
        reason: the problem, in a sentence or two.
        faults: differences from the torch model, by layer if possible.
        path: the file that failed its check, `<name>.rejected`; None if there is none.
    """

    name: str
    format: str
    reason: str
    faults: tuple[str, ...] = ()
    path: Path | None = None


@dataclass(frozen=True)
class NoOptions:
    """A generator, calibrator or listener without settings."""


def setting(default: Any, text: str) -> Any:
    """Return the field of an options record, with its default and the text that listings show.

    >>> import dataclasses
    >>> @dataclasses.dataclass(frozen=True)
    ... class Options:
    ...     seed: int = setting(0, "seed of the noise")
    >>> Options().seed, dataclasses.fields(Options)[0].metadata["help"]
    (0, 'seed of the noise')
    """
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class PluginEntry:
    """A plugin's registration: a name, and how to build the object when it is requested.

    Args:
        name: the name that the user types.
        summary: one line for listings.
        factory: `"package.module:Class"`, imported on first use and called with one options record.
        requires: import names that must be installed; if one is missing, the entry is unavailable, not broken.
        install: the pip arguments that install them, e.g. `"dfq-plugins[brevitas]"`.
        options: frozen dataclass of the settings, each field with a default, `annotated_types` constraints and
            `field(metadata={"help": ...})`.
    """

    name: str
    summary: str
    factory: str
    requires: tuple[str, ...] = ()
    install: str = ""
    options: type[Any] = NoOptions


class GeneratorEntry(PluginEntry):
    """Registers a `DataGenerator`."""


class LearningGeneratorEntry(PluginEntry):
    """Registers a `LearningGenerator`. One that also synthesizes data sets is registered as a generator, too."""


@dataclass(frozen=True)
class CalibratorEntry(PluginEntry):
    """Registers a `Calibrator`.

    Args:
        artifact_suffixes: endings of the names of the files that its `load` takes, e.g. `(".torchscript.pt",)`. They
            are part of the entry so that the owner of a file is found without importing any framework.
        onnx_files: whether it also quantizes ONNX files; its `prepare` then takes the host's `OnnxNetwork`, see
            `dfq_plugins.quantization.onnx_file`.
    """

    artifact_suffixes: tuple[str, ...] = ()
    onnx_files: bool = False


class ProgressListenerEntry(PluginEntry):
    """Registers a listener: an object called with every `ProgressEvent`."""
