"""Arguments shared by several commands, and the records that hold them."""

from __future__ import annotations

import contextlib
import functools
import warnings
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dfq_plugins.cli.group import set_resume_hint
from dfq_plugins.cli.output import print_table
from dfq_plugins.errors import DfqError, UsageError, first_line
from dfq_plugins.host.options import describe_options, parse_options
from dfq_plugins.host.registry import get_registry
from dfq_plugins.types import InputSpec, NetworkSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from click.shell_completion import CompletionItem
    from torch import nn

    from dfq_plugins.distillation.options import TrainingOptions
    from dfq_plugins.host.plugin_info import Kind
    from dfq_plugins.reconstruction.options import ReconstructionOptions
    from dfq_plugins.types import Call, Specification

Command = TypeVar("Command", bound="Callable[..., Any]")

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)


@dataclass(frozen=True)
class ModelArguments:
    """MODEL, --weights and --threads."""

    model_reference: str
    weights: Path | None
    threads: int | None

    def load(self) -> nn.Module:
        """Load the model, and set the number of threads."""
        return load_model(self.model_reference, self.weights, self.threads)

    def load_or_read(self) -> nn.Module:
        """Load the model, or read it if it is an ONNX file, and set the number of threads.

        Raises:
            UsageError: weights were given with an ONNX file, which has its own.
        """
        if not self.model_reference.lower().endswith(".onnx"):
            return self.load()
        if self.weights is not None:
            raise UsageError(
                f"{self.model_reference} includes its weights, so {self.weights} cannot be loaded. Omit it."
            )
        import torch

        from dfq_plugins.quantization.onnx_file import read_network  # noqa: PLC0415  imports ONNX Runtime

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        return read_network(Path(self.model_reference))


@dataclass(frozen=True)
class SpecArguments:
    """The fields of an `InputSpec`; None if not given."""

    shape: tuple[int, ...] | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    value_range: tuple[float, ...] | None
    num_classes: int | None
    inputs: dict[str, InputSpec] | None = None
    call: Call | None = None
    standardized_samples: bool | None = None

    def complete(self, model: nn.Module) -> Specification:
        """Return the model's input specification; values that were not given are inferred.

        Raises:
            UsageError: options for one input and for several are mixed, or the model takes other inputs.
        """
        from dfq_plugins.network.specification import complete_spec, resolve_spec  # noqa: PLC0415  imports torch

        if self.inputs:
            self._refuse_single()
            given = NetworkSpec(self.inputs, self.num_classes, self.call or "keywords")
            return resolve_spec(model, given, get_registry())
        if self.call is not None:
            raise UsageError("--call says how the model takes several inputs: give each with --input NAME:SHAPE.")
        bounds = self.value_range
        if bounds is not None and len(bounds) != 2:  # noqa: PLR2004  lowest and highest
            raise UsageError(
                f"--value-range takes the lowest and the highest value, got {len(bounds)} numbers. Give e.g. 0,1."
            )
        return complete_spec(
            model,
            shape=self.shape,
            mean=self.mean,
            std=self.std,
            value_range=None if bounds is None else (bounds[0], bounds[1]),
            num_classes=self.num_classes,
            standardized_samples=bool(self.standardized_samples),
            registry=get_registry(),
        )

    def _refuse_single(self) -> None:
        single = {"shape": self.shape, "mean": self.mean, "std": self.std, "value-range": self.value_range}
        if named := [f"--{name}" for name, value in single.items() if value is not None]:
            raise UsageError(
                f"{', '.join(named)} describes a single input, but --input was given. Write it as a part of each "
                "--input: NAME:SHAPE:mean=0.5:std=0.25:range=0,1."
            )

    def filled_in(self, known: Specification) -> SpecArguments:
        """Return the arguments with those that were not given taken from a specification."""
        classes = known.num_classes if self.num_classes is None else self.num_classes
        if isinstance(known, NetworkSpec):
            return replace(self, num_classes=classes, inputs=self.inputs or known.named, call=self.call or known.call)
        return replace(
            self,
            shape=self.shape or known.shape,
            mean=self.mean or known.mean,
            std=self.std or known.std,
            value_range=self.value_range or known.value_range,
            num_classes=classes,
            standardized_samples=self.standardized_samples or known.standardized_samples,
        )

    def with_sets(self, sets: Mapping[str, Specification]) -> SpecArguments:
        """Return the arguments with those that were not given taken from the synthetic sets among several sources.

        Args:
            sets: the specification of each set, by its name.

        Raises:
            UsageError: two sets, or a set and an argument, contradict each other.
        """
        if not sets:
            return self
        first, known = next(iter(sets.items()))
        for name, other in sets.items():
            if replace(other, num_classes=None) != replace(known, num_classes=None):
                raise UsageError(
                    f"All synthetic sets must have the same input specification, but {first} has {known} and {name} "
                    f"has {other}. Compare them in separate runs."
                )
        if isinstance(known, InputSpec):
            names = ("shape", "mean", "std", "value_range")
            given = {name: value for name in names if (value := getattr(self, name)) is not None}
            for name, value in given.items():
                if tuple(value) != getattr(known, name):
                    raise UsageError(
                        f"--{name.replace('_', '-')} is {value}, but the synthetic set {first} was made with "
                        f"{getattr(known, name)}. Remove the option, or the set."
                    )
        return self.filled_in(known)

    def of_set(self, known: Specification) -> Specification:
        """Return the input specification of a synthetic set, with the given number of classes.

        Raises:
            UsageError: another option was given; the set provides its own.
        """
        given = {
            "input" if name == "inputs" else name: value
            for name, value in asdict(self).items()
            if value and name != "num_classes"
        }
        if named := [f"--{name.replace('_', '-')}" for name in given]:
            raise UsageError(f"A synthetic set provides its own input specification: remove {', '.join(named)}.")
        return with_classes(known, self.num_classes)


@dataclass(frozen=True)
class QuantizationArguments:
    """The data, framework and settings of a quantization."""

    data: Path
    calibrator: str
    recipe: str
    output: Path | None
    num_classes: int | None
    allow_other_network: bool
    options: dict[str, str]

    def check(self) -> None:
        """Report mistakes before torch is imported.

        Raises:
            UsageError: the recipe or an option is invalid.
            PluginError: the calibrator is unknown or unavailable.
        """
        from dfq_plugins.types import Recipe  # noqa: PLC0415  for the check itself

        Recipe.parse(self.recipe)
        get_registry().options("calibrator", self.calibrator, self.options)


@dataclass(frozen=True)
class TrainingArguments:
    """The settings of a training and the generator of its inputs."""

    training: dict[str, str]
    max_seconds: float | None
    work: Path | None
    generator: str | None
    generator_options: dict[str, str]

    @property
    def settings(self) -> dict[str, object]:
        """The training settings, including --max-seconds."""
        budget = {} if self.max_seconds is None else {"max_seconds": self.max_seconds}
        return {**budget, **self.training}

    @property
    def named(self) -> list[str]:
        """The given options, as typed on the command line."""
        given = [field.name for field in fields(self) if getattr(self, field.name)]
        return [f"--{name.replace('_', '-').removesuffix('s')}" for name in given]

    def check(self, kind: type[TrainingOptions], owner: str) -> None:
        """Report mistakes before torch is imported, and set the hint on how to resume an interrupted run.

        Args:
            kind: the options record.
            owner: name of the settings for messages.

        Raises:
            UsageError: a setting is unknown or invalid, or a generator option is given without a generator.
            PluginError: the generator is unknown or unavailable.
        """
        parse_options(kind, self.settings, owner=owner)
        if self.generator is not None:
            registry = get_registry()
            which = registry.kind_of(self.generator, ("learning generator", "generator"))
            registry.options(which, self.generator, self.generator_options)
        elif self.generator_options:
            raise UsageError("--generator-option needs a generator: name one with --generator.")
        lost = "To be able to resume, use --work FOLDER to keep checkpoints."
        resume = f"Checkpoints are in {self.work}: run the same command again to resume."
        set_resume_hint(lost if self.work is None else resume)


@dataclass(frozen=True)
class ReconstructionArguments:
    """Whether the network is reconstructed, and how."""

    reconstruct: bool
    reconstruction: dict[str, str]

    @property
    def settings(self) -> ReconstructionOptions | bool:
        """The checked settings; False without --reconstruct.

        Raises:
            UsageError: a setting is unknown or invalid, or is given without --reconstruct.
        """
        from dfq_plugins.reconstruction.options import ReconstructionOptions  # noqa: PLC0415  only where it is wanted

        if not self.reconstruct and self.reconstruction:
            raise UsageError("--reconstruction only applies to a reconstruction: add --reconstruct.")
        checked = parse_options(ReconstructionOptions, self.reconstruction, owner="the reconstruction")
        return checked if self.reconstruct else False


def with_classes(known: Specification, num_classes: int | None) -> Specification:
    """Return a specification with another number of classes, if one was given."""
    return known if num_classes is None else replace(known, num_classes=num_classes)


def bundled(record: type[Any], name: str, *options: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """Return a decorator that adds options to a command and passes them to it as one record.

    Args:
        record: the dataclass, with fields named like the options.
        name: the command's parameter for the record.
        options: click option decorators.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def bundling(*positional: Any, **given: Any) -> Any:
            own = {field.name: given.pop(field.name) for field in fields(record)}
            return command(*positional, **{name: record(**own)}, **given)

        return functools.reduce(lambda inner, option: option(inner), reversed(options), bundling)  # type: ignore[return-value]

    return decorate


def numbers_option(flag: str, number: type[int | float], help_text: str) -> Callable[[Command], Command]:
    """Return an option for comma-separated numbers, such as `3,32,32`, passed as a tuple."""

    def convert(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[float, ...] | None:
        try:
            return None if text is None else tuple(number(part) for part in text.split(","))
        except ValueError:
            message = f"{text!r} is not a comma-separated list of {number.__name__} numbers, e.g. 3,32,32."
            raise click.BadParameter(message, context, parameter) from None

    return click.option(flag, metavar="N,N,...", callback=convert, help=help_text)


INPUT_FORM = "NAME:SHAPE[:mean=N,...][:std=N,...][:range=LOW,HIGH]"


def parse_input(text: str) -> tuple[str, InputSpec]:
    """Return the name and the specification of one of several inputs.

    Raises:
        UsageError: the text does not have the form of `INPUT_FORM`.

    >>> parse_input("image:3,32,32:range=0,1")[1].value_range
    (0.0, 1.0)
    """
    name, *parts = text.split(":")
    settings = dict(part.partition("=")[::2] for part in parts[1:])
    if not name or not parts or not set(settings) <= {"mean", "std", "range"} or len(settings) != len(parts) - 1:
        raise UsageError(f"An input is given as {INPUT_FORM}, e.g. image:3,32,32:range=0,1, got {text!r}.")
    try:
        shape = tuple(int(size) for size in parts[0].split(","))
        values = {key: tuple(float(number) for number in value.split(",")) for key, value in settings.items()}
    except ValueError:
        raise UsageError(
            f"The shape of an input and its settings are comma-separated numbers, {INPUT_FORM}, got {text!r}."
        ) from None
    bounds = values.get("range")
    if bounds is not None and len(bounds) != 2:  # noqa: PLR2004  lowest and highest
        raise UsageError(f"The range of an input is its lowest and its highest value, e.g. range=0,1, got {text!r}.")
    known = None if bounds is None else (bounds[0], bounds[1])
    return name, InputSpec(shape, values.get("mean"), values.get("std"), known)


def _parse_inputs(
    context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]
) -> dict[str, InputSpec] | None:
    found: dict[str, InputSpec] = {}
    for text in texts:
        name, spec = parse_input(text)
        if name in found:
            raise click.BadParameter(f"{name!r} is given twice.", context, parameter)
        found[name] = spec
    return found or None


def pairs_option(*flags: str, help_text: str) -> Callable[[Command], Command]:
    """Return a repeatable `key=value` option, passed as one dictionary of strings."""

    def convert(context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
        pairs: dict[str, str] = {}
        for text in texts:
            key, _, setting = text.partition("=")
            name = key.strip().replace("-", "_")
            if not name or "=" not in text:
                raise click.BadParameter(f"{text!r} is not of the form KEY=VALUE.", context, parameter)
            if name in pairs:
                raise click.BadParameter(f"{name!r} is given twice.", context, parameter)
            pairs[name] = setting.strip()
        return pairs

    return click.option(*flags, multiple=True, metavar="KEY=VALUE", callback=convert, help=help_text)


def listing(flag: str, kind: Callable[[], type[Any]], help_text: str) -> Callable[[Command], Command]:
    """Return an option that lists the settings of an options record and exits."""

    def listed(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
        if wanted:
            rows = [(row.name, row.type, row.default, row.help) for row in describe_options(kind())]
            print_table(("Setting", "Value", "Default", ""), rows)
            context.exit()

    return click.option(flag, is_flag=True, is_eager=True, expose_value=False, callback=listed, help=help_text)


def name_option(
    flag: str, help_text: str, *, required: bool = False, kinds: tuple[Kind, ...] = ()
) -> Callable[[Command], Command]:
    """Return `--generator` or `--calibrator`, with shell completion of the installed plugins' names.

    Args:
        flag: "generator" or "calibrator".
        help_text: the help text.
        required: whether the option is required.
        kinds: plugin kinds to complete; if empty, the kind that `flag` names.
    """
    wanted: tuple[Kind, ...] = kinds or (flag,)  # type: ignore[assignment]  # the flag is a kind

    def complete(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str | CompletionItem]:
        with warnings.catch_warnings(), contextlib.suppress(DfqError):  # only names may reach the user's prompt
            warnings.simplefilter("ignore")
            registry = get_registry()
            names = dict.fromkeys(name for kind in wanted for name in registry.of(kind))
            return [name for name in names if name.startswith(incomplete)]
        return []

    return click.option(f"--{flag}", metavar="NAME", required=required, help=help_text, shell_complete=complete)


json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")

plugin_options = pairs_option(
    "--option", "-O", "options", help_text="Plugin setting; repeatable. `dfq plugins NAME` lists them."
)

report_option = click.option(
    "--report",
    metavar="FILE",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Write a report of the run as one self-contained HTML file.",
)

other_network_option = click.option(
    "--allow-other-network", is_flag=True, help="Only warn of a synthetic set that was made from another network."
)

num_classes_option = click.option(
    "--num-classes",
    type=click.IntRange(min=0),
    help="Number of class logits; 0: not a classifier; default: not known, unless a plugin knows the model.",
)

model_options = bundled(
    ModelArguments,
    "model",
    click.argument("model_reference", metavar="MODEL"),
    click.option("--weights", type=FILE, help="State dict of the model: .safetensors, .pth or .pt."),
    click.option("--threads", type=click.IntRange(min=1), help="Number of CPU threads; default: torch's choice."),
)

spec_options = bundled(
    SpecArguments,
    "spec",
    numbers_option("--shape", int, "Shape of one input, channels first: 3,32,32."),
    numbers_option("--mean", float, "Mean of each channel, subtracted from the raw values."),
    numbers_option("--std", float, "Standard deviation of each channel, which divides the raw values."),
    numbers_option("--value-range", float, "Lowest and highest raw value: 0,1."),
    num_classes_option,
    click.option(
        "--input",
        "inputs",
        multiple=True,
        metavar=INPUT_FORM,
        callback=_parse_inputs,
        help="One of several inputs, by the name of its parameter: image:3,32,32:range=0,1; repeatable.",
    ),
    click.option(
        "--call",
        type=click.Choice(["keywords", "positional", "dictionary"]),
        help="How the model takes several inputs; default: keywords.",
    ),
    click.option(
        "--standardized-samples",
        is_flag=True,
        default=None,
        help="Each input is normalized by its own mean and standard deviation, as frames of audio often are.",
    ),
)

quantization_options = bundled(
    QuantizationArguments,
    "what",
    click.argument("data", type=click.Path(path_type=Path)),
    name_option(
        "calibrator", "The framework that quantizes: torch-ao, pytorch-quantization, brevitas, ...", required=True
    ),
    click.option(
        "--recipe", default="w8a8", show_default=True, help="Bits of weights and activations: w8a8, w4a4, binary."
    ),
    click.option("--output", "-o", type=FOLDER, help="Folder for the artifacts."),
    num_classes_option,
    other_network_option,
    plugin_options,
)


def _reconstruction_kind() -> type[ReconstructionOptions]:
    from dfq_plugins.reconstruction.options import ReconstructionOptions  # noqa: PLC0415  only where it is listed

    return ReconstructionOptions


reconstruction_options = bundled(
    ReconstructionArguments,
    "reconstruction",
    click.option(
        "--reconstruct",
        is_flag=True,
        help="After calibration, learn roundings and scales block by block; pays off below 8 bits.",
    ),
    pairs_option(
        "--reconstruction",
        "-R",
        "reconstruction",
        help_text="Setting of --reconstruct; repeatable. See --list-reconstruction.",
    ),
    listing("--list-reconstruction", _reconstruction_kind, "List the settings of --reconstruct and exit."),
)


def training_options(kind: Callable[[], type[TrainingOptions]], generator_help: str) -> Callable[[Command], Command]:
    """Return the training options of a command, with the settings of the given record.

    Args:
        kind: returns the options record; called when its settings are listed.
        generator_help: help text of --generator in this command.
    """
    return bundled(
        TrainingArguments,
        "training",
        name_option("generator", generator_help, kinds=("generator", "learning generator")),
        pairs_option("--generator-option", "-G", "generator_options", help_text="Setting of --generator; repeatable."),
        pairs_option("--training", "-T", "training", help_text="Training setting; repeatable. See --list-training."),
        click.option(
            "--max-seconds", type=float, help="Maximum seconds of training; the schedule is compressed to fit."
        ),
        click.option("--work", type=FOLDER, help="Folder for checkpoints; an interrupted run resumes from there."),
        listing("--list-training", kind, "List the training settings and exit."),
    )


def load_model(reference: str, weights: Path | None, threads: int | None) -> nn.Module:
    """Load the model given on the command line, and set the number of threads."""
    import torch

    from dfq_plugins.network import load as models  # noqa: PLC0415  imports torch

    if threads is not None:
        torch.set_num_threads(threads)
    return models.load_model(reference, weights)


def on_device(model: nn.Module, device: str) -> nn.Module:
    """Move a model to a device.

    Raises:
        UsageError: the device is not available.
    """
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA raises AssertionError
        raise UsageError(
            f"--device {device} is not available ({first_line(error)}). Choose cpu, or a GPU that torch can see."
        ) from error
