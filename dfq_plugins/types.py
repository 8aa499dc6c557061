"""The records and base classes that the host, generators and calibrators share. Imports no torch."""

from __future__ import annotations

import difflib
import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from dfq_plugins.errors import DataError, PluginError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    import torch
    from torch import nn


@dataclass(frozen=True)
class InputSpec:
    """What one input of the network looks like.

    The network takes `(raw - mean) / std` per channel, where `raw` lies in `value_range`.

    Args:
        shape: shape of one sample, channels first, without the batch axis: `(3, 32, 32)`.
        mean: mean subtracted from the raw values, one per channel; None if the normalization is not known.
        std: standard deviation that the raw values are divided by, one per channel; None together with `mean`.
        value_range: lowest and highest raw value (in network units where mean is None); None if unbounded or unknown.
        num_classes: width of the class logits; None if the network is no classifier.

    Raises:
        UsageError: a size is not positive, mean and std do not fit the channels, or the range is empty.

    >>> InputSpec((1, 8, 8), (0.5,), (0.25,), (0.0, 1.0)).bounds
    ((-2.0,), (2.0,))
    """

    shape: tuple[int, ...]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    value_range: tuple[float, float] | None = None
    num_classes: int | None = None

    def __post_init__(self) -> None:
        if not self.shape or any(size < 1 for size in self.shape):
            raise UsageError(
                f"An input shape needs positive sizes, channels first, got {self.shape}. Give e.g. (3, 32, 32)."
            )
        if (self.mean is None) != (self.std is None):
            raise UsageError("mean and std go together: give both or neither.")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != self.channels:
                raise UsageError(f"{name} needs one value per channel ({self.channels}), got {len(values)}: {values}.")
        if self.std is not None and min(self.std) <= 0:
            raise UsageError(f"std must be positive, got {self.std}.")
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            raise UsageError(f"value_range must rise, got {self.value_range}. Give (lowest, highest), e.g. (0, 1).")

    @property
    def channels(self) -> int:
        """Number of channels: the first size of the shape."""
        return self.shape[0]

    @property
    def bounds(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Lowest and highest network input per channel, or None where the range is unknown."""
        if self.value_range is None:
            return None
        mean = self.mean or (0.0,) * self.channels
        std = self.std or (1.0,) * self.channels
        low, high = ([(edge - m) / s for m, s in zip(mean, std, strict=True)] for edge in self.value_range)
        return tuple(low), tuple(high)

    @property
    def pad_value(self) -> tuple[float, ...]:
        """What lies around an input that is shifted or cropped, per channel: the lowest value, 0 where it is unknown.

        >>> InputSpec((1, 8), (0.5,), (0.25,), (0.0, 1.0)).pad_value
        (-2.0,)
        """
        return (0.0,) * self.channels if self.bounds is None else self.bounds[0]

    @property
    def standardized(self) -> bool:
        """Whether normalized data has mean 0 and variance 1, so that the input itself has known statistics.

        A std above that of a uniform distribution over `value_range` cannot be the data's own: it is arithmetic
        scaling such as `x / 127.5 - 1`.

        >>> InputSpec((1, 8), (0.5,), (0.25,), (0.0, 1.0)).standardized
        True
        >>> InputSpec((1, 8), (127.5,), (127.5,), (0.0, 255.0)).standardized
        False
        """
        if self.std is None:
            return False
        if self.value_range is None:
            return True
        return max(self.std) < (self.value_range[1] - self.value_range[0]) / math.sqrt(12)

    @property
    def input_range(self) -> tuple[float, float] | None:
        """Lowest and highest network input over all channels: the range of the input quantizer."""
        return None if self.bounds is None else (min(self.bounds[0]), max(self.bounds[1]))

    def check_batch(self, batch: torch.Tensor) -> None:
        """Refuse inputs that the network cannot take.

        Args:
            batch: inputs `(samples, *shape)`.

        Raises:
            DataError: the shape is another one, or a value is NaN or infinite.
        """
        if tuple(batch.shape[1:]) != self.shape or not batch.ndim:
            expected = ", ".join(map(str, ("samples", *self.shape)))
            raise DataError(
                f"A batch of inputs must have the shape ({expected}), got {tuple(batch.shape)}. "
                "Fix the data or the input specification."
            )
        if not bool(batch.isfinite().all()):
            raise DataError("Inputs must be finite, but a batch holds NaN or infinity. Remove or repair those samples.")


class Batch(NamedTuple):
    """Inputs `(batch, *shape)` with class labels `(batch,)` and teacher logits `(batch, classes)` where known.

    A single sample of a data set is the same record without the batch axis.
    """

    inputs: torch.Tensor
    labels: torch.Tensor | None = None
    logits: torch.Tensor | None = None


@dataclass(frozen=True)
class ProgressEvent:
    """One step of a run: `completed` of `total` units of `stage`, with the latest metrics.

    `fraction` says how far the stage is, 0 to 1, where that is known more finely than in whole units.
    """

    stage: str
    completed: int
    total: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    fraction: float | None = None

    @property
    def position(self) -> float:
        """How many units are done, with the part of the one that is at work.

        >>> ProgressEvent("synthesize", 3, 8, fraction=0.4).position
        3.2
        """
        return self.completed if self.fraction is None else self.fraction * self.total


@dataclass
class TimeBudget:
    """The time that one shard may take. The generator writes into it how many iterations it made of that.

    Args:
        seconds: for this shard, from now.
        run_seconds: for all the shards that this process may still make, this one included.
        iterations: the iterations that were really used, the fewest of any sample; None where there are none.
    """

    seconds: float
    run_seconds: float
    iterations: int | None = None

    def after(self, preparation: float) -> float:
        """Return the seconds for the shard once the run has lost some to what is done for all shards together.

        >>> TimeBudget(25.0, 100.0).after(40.0)
        15.0
        """
        share = 1 - preparation / self.run_seconds if self.run_seconds else 0.0
        return max(0.0, self.seconds * share)


class PluginBase(ABC):  # noqa: B024  its subclasses have the abstract methods
    """Base of the objects that plugins build.

    What a subclass may do, besides what it must, are methods with defaults. A public name that is nearly one of them is
    taken for a slip.
    """

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Refuse a misspelled method.

        Raises:
            PluginError: a public name of the class is nearly that of a method that the host calls.
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
                    f"{cls.__qualname__} defines {name!r}, which is never called. Did you mean {hint[0]!r}? Otherwise "
                    "begin the name with an underscore."
                )


_NEARLY = 0.85
"""Similarity from which a name is taken for a misspelled one: 'check_suported' has 0.97, 'batches' for 'batch' 0.83."""


class DataGenerator(PluginBase):
    """Synthesizes inputs from a trained model. Built by its entry's factory from an options record.

    Attributes:
        conditional: whether it makes inputs for given classes, and yields labels.
        timed: whether it keeps to a `budget`.
    """

    conditional: bool = False
    timed: bool = False

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
        """Yield batches that hold exactly `num_samples` samples in all.

        Args:
            model: a private frozen copy in eval mode; may be changed.
            spec: the input to synthesize.
            num_samples: how many samples to yield in all, at least 1.
            batch_size: the largest batch to yield.
            rng: the only source of randomness.
            report: call it after each step.
            budget: the time to keep to; only a generator that is `timed` is given one.
        """

    def check_supported(self, model: nn.Module, spec: InputSpec) -> None:
        """Refuse a model or specification that it cannot work on, before anything is written.

        Raises:
            DfqError: of the kind that fits.
        """

    def resolved_options(self, options: Any) -> Any:
        """Return the options as the data set is to record them, e.g. with the checksum of a file that they name.

        Args:
            options: the record that the generator was built from.
        """
        return options


class LearningGenerator(PluginBase):
    """Makes the inputs of a fine-tuning while it learns from the student.

    Before each training step the loop calls `progress(share)`, `feedback(student)` and then `batch(size)`. The
    generator keeps its own schedule: one that learns once in ten steps lets nine feedbacks pass and returns the same
    inputs meanwhile.
    """

    @abstractmethod
    def begin(self, teacher: nn.Module, spec: InputSpec, rng: torch.Generator) -> None:
        """Get ready for one run.

        Args:
            teacher: a private frozen copy in eval mode; gradients pass through it to its inputs.
            spec: the input to make.
            rng: the only source of randomness, in all calls.
        """

    @abstractmethod
    def feedback(self, student: nn.Module) -> None:
        """Learn from the student as it is now. The student must not be changed; gradients left on it are cleared."""

    @abstractmethod
    def batch(self, size: int) -> Batch:
        """Return the inputs of the next step, `(size, *shape)`, with labels where they were made for given classes."""

    @abstractmethod
    def state(self) -> Mapping[str, torch.Tensor]:
        """Return everything that the next calls depend on besides `rng`, for a checkpoint."""

    @abstractmethod
    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Continue from what `state` returned, after `begin`."""

    def check_supported(self, model: nn.Module, spec: InputSpec) -> None:
        """Refuse a model or specification that it cannot work on, before anything is calibrated.

        Raises:
            DfqError: of the kind that fits.
        """

    def listen(self, report: Callable[[ProgressEvent], None]) -> None:
        """Take the function to report progress to, before `begin`; for one that takes long before its first batch."""

    def progress(self, share: float) -> None:
        """Note the share of the training that is done, 0 to 1; for one whose learning rate falls over all of it."""


class Calibrator(PluginBase):
    """Takes a float model through one framework's own quantization, in torch.ao's own verbs.

    What the later steps need travels in the module that `prepare` returns, not in the calibrator: another calibrator
    object, or a deep copy of the module, continues where this one stopped.
    """

    @abstractmethod
    def prepare(self, model: nn.Module, spec: InputSpec, recipe: Recipe, *, training: bool) -> nn.Module:
        """Return a copy of `model` with the framework's observers or fake quantizers inserted."""

    @abstractmethod
    def calibrate(self, prepared: nn.Module, batches: Iterable[torch.Tensor]) -> None:
        """Let the framework record the ranges of every batch, in place."""

    @abstractmethod
    def convert(self, prepared: nn.Module) -> nn.Module:
        """Return the framework's native quantized model."""

    @abstractmethod
    def describe(self, converted: nn.Module) -> Coverage:
        """Say which tensors are quantized and how, and which modules stay in float."""

    @abstractmethod
    def export(self, converted: nn.Module, spec: InputSpec, path: Path) -> tuple[Artifact, ...]:
        """Write the framework's artifacts into the folder `path`, run each, and compare it with the torch model.

        Raises:
            ArtifactError: an artifact does not agree with the torch model; it names those that passed and those that
                did not, see `dfq_plugins.quantization.artifacts`.
        """

    def scale_parameters(self, prepared: nn.Module) -> Iterable[nn.Parameter]:  # noqa: ARG002
        """Return the parameters that are learned quantizer scales, which have a learning rate of their own."""
        return ()

    def freeze_ranges(self, prepared: nn.Module) -> None:
        """Stop observing the ranges of activations, in place; called late in the training, perhaps twice."""

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
        """Read `w<bits>a<bits>`, each from 1 to 32; 32 is float. `binary` is `w1a32`: two values, float activations.

        Raises:
            UsageError: the text is not of that form.
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
        per_channel: whether each channel has a scale, rather than the whole tensor.
        stored_bits: width of the integers that hold the values in the framework's model or file, at least `bits`.
        range: lowest and highest value that the integers represent; None where there is one range per channel, or
            where none is known yet.

    Raises:
        UsageError: the values do not fit into `stored_bits`.
    """

    bits: int
    signed: bool
    symmetric: bool
    per_channel: bool
    stored_bits: int
    range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= self.stored_bits:
            raise UsageError(
                f"A number format needs 1 <= bits <= stored_bits, got bits={self.bits}, stored_bits={self.stored_bits}."
            )


TensorRole = Literal["weight", "input", "activation"]
"""What a quantized tensor is: a layer's weight, a layer's input, or the output of a quantizer in the graph itself."""


@dataclass(frozen=True)
class QuantizedTensor:
    """One tensor of a quantized model.

    Args:
        name: name of the layer whose weight or input it is, or of the module or node that quantizes an activation.
        kind: class of that module, or name of the operation.
        role: which tensor of it.
        format: how its values are quantized.
    """

    name: str
    kind: str
    role: TensorRole
    format: NumberFormat


@dataclass(frozen=True)
class Coverage:
    """Which tensors are quantized and how, and which modules stay in float with the reason.

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
        """Return the format of one tensor; None where it is not quantized."""
        found = (tensor.format for tensor in self.quantized if (tensor.name, tensor.role) == (name, role))
        return next(found, None)


@dataclass(frozen=True)
class Check:
    """One check that an artifact passed, with the figures that it was judged by."""

    name: str
    detail: str


@dataclass(frozen=True)
class Artifact:
    """A file that was written, with the checks that it passed before it was handed over."""

    path: Path
    format: str
    size_bytes: int
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class RejectedArtifact:
    """An artifact that is not handed over.

    Args:
        name: file name that it would have had.
        format: its format; empty where that is not known.
        reason: what is wrong, in a sentence or two.
        faults: what differs from the torch model, layer by layer where that can be told.
        path: the file that failed its check, `<name>.rejected`; None where there is none.
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
    """Return the field of an options record: its default, and the sentence that listings show.

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
    """What a plugin registers: a name and how to build the object behind it when it is asked for.

    Args:
        name: what the user types.
        summary: one line for listings.
        factory: `"package.module:Class"`, imported on first use and called with one options record.
        requires: import names that must be installed; a missing one makes the entry unavailable, not broken.
        install: the pip arguments that bring them, e.g. `"dfq-plugins[brevitas]"`.
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
    """Registers a `LearningGenerator`. One that makes data sets as well is registered as a generator, too."""


@dataclass(frozen=True)
class CalibratorEntry(PluginEntry):
    """Registers a `Calibrator`.

    Args:
        artifact_suffixes: endings of the names of the files that its `load` takes, e.g. `(".torchscript.pt",)`. They
            are part of the entry so that the owner of a file is found without importing any framework.
    """

    artifact_suffixes: tuple[str, ...] = ()


class ProgressListenerEntry(PluginEntry):
    """Registers a listener: an object called with every `ProgressEvent`."""
