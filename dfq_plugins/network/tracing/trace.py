"""Traces a network for the frameworks that need a graph, and checks that the graph computes what the network does."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dfq_plugins.errors import DfqError, ModelError, first_line
from dfq_plugins.inputs import cloned, moved, random_inputs
from dfq_plugins.inputs import leaves as leaves_of
from dfq_plugins.model_state import device_of, preserve_global_state
from dfq_plugins.network.graph_inputs import placeholder_names
from dfq_plugins.network.trace_errors import failing_line
from dfq_plugins.network.tracing.batch import unify
from dfq_plugins.network.tracing.graph import write_graph
from dfq_plugins.network.tracing.operation import Recording, UntraceableError, leaves
from dfq_plugins.network.tracing.recorder import NOT_THE_MODEL, plain_structure, record
from dfq_plugins.types import InputSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from torch.fx import GraphModule

    from dfq_plugins.types import Inputs, Specification

_BATCHES = (2, 3)
"""Batch sizes of the two recordings: sizes that differ between them follow the batch."""
_CHECKED_BATCH = 4
_TOLERANCE = 1e-3
"""Largest difference from the network, relative to its largest output: only rounding in another order."""


def trace(
    model: nn.Module,
    spec: Specification,
    *,
    opaque: Collection[str] = (),
    way_round: Callable[[str], str] | None = None,
) -> GraphModule:
    """Return a network as a graph of torch's layers and functions, for any batch size and the specification's shape.

    Python decides what Python can decide: branches and loops on shapes, assertions, flags and optional arguments.
    Layers of `torch.nn` stay submodules under their names; layers written as functions become such submodules; a layer
    that is called again gets a twin. Each operation has one spelling.

    Args:
        model: a private copy in eval mode; the graph takes its submodules and parameters.
        spec: its inputs: the graph has a placeholder for each, in order; all other arguments keep their defaults.
        opaque: names of submodules to keep as one call, whatever they do.
        way_round: returns what users of the framework can do about a submodule that cannot be traced, given its name.

    Raises:
        ModelError: the forward pass depends on values of its input, or differs between batch sizes; names the line.
    """
    with preserve_global_state(), torch.no_grad(), _advised(way_round or _rewrite), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the network's own, which it gives in every run
        checked = example_inputs(spec, _CHECKED_BATCH, model)
        expected = plain_structure(_run(model, checked, spec))  # first: some networks keep what they compute once
        first, second = (_recorded(model, spec, batch, opaque) for batch in _BATCHES)
        graph = write_graph(model, unify(first, second), first.output, first.shapes)
        _require_equal(graph, checked, expected)
    return graph


def _rewrite(_name: str) -> str:
    return "Rewrite that line with tensor operations, or move it out of the network."


@contextmanager
def _advised(way_round: Callable[[str], str]) -> Iterator[None]:
    """Add to an error of the recording what users of the framework can do about it."""
    try:
        yield
    except UntraceableError as error:
        raise ModelError(f"{error} {way_round(error.module)}") from error


def example_inputs(spec: Specification, samples: int, model: nn.Module) -> dict[str, Tensor]:
    """Return inputs `(samples, *shape)` by the names of their placeholders, in order: noise within the known ranges."""
    drawn = moved(random_inputs(spec, samples), device_of(model))
    return dict(zip(placeholder_names(spec, model), leaves_of(drawn), strict=True))


def _recorded(model: nn.Module, spec: Specification, samples: int, opaque: Collection[str]) -> Recording:
    def call(network: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
        return spec.run(network, _given(spec, inputs))

    with _model_errors(spec):
        return record(model, example_inputs(spec, samples, model), call, opaque=opaque)


def _run(model: nn.Module, inputs: Mapping[str, Tensor], spec: Specification) -> Any:
    with _model_errors(spec):
        return spec.run(model, cloned(_given(spec, inputs)))


def _given(spec: Specification, inputs: Mapping[str, Tensor]) -> Inputs:
    """Return the inputs as the specification names them, given by the names of their placeholders."""
    tensors = list(inputs.values())
    return tensors[0] if isinstance(spec, InputSpec) else dict(zip(spec.order, tensors, strict=True))


@contextmanager
def _model_errors(spec: Specification) -> Iterator[None]:
    """Name the line of the network at which running it fails.

    Raises:
        ModelError: it failed.
    """
    try:
        yield
    except DfqError:
        raise
    except Exception as error:
        line = failing_line(error, NOT_THE_MODEL)
        where = "" if line is None else f" at {line.text}"
        raise ModelError(
            f"The network does not run on inputs of shape {spec.shape}: {type(error).__name__}{where}: "
            f"{first_line(error)}. Give the shape of one sample as the network expects it, or mend that line."
        ) from error


def _require_equal(graph: GraphModule, inputs: Mapping[str, Tensor], expected: Any) -> None:
    """Check the graph against the network at a third batch size.

    Raises:
        ModelError: an output differs by more than rounding.
    """
    found = graph(*inputs.values())
    wanted, given = ([value for value in leaves(output) if isinstance(value, Tensor)] for output in (expected, found))
    if len(wanted) != len(given):
        raise ModelError(f"The traced network returns {len(given)} tensors instead of {len(wanted)}. {_REPORT}")
    for index, (one, other) in enumerate(zip(wanted, given, strict=True)):
        if one.shape != other.shape:
            shapes = f"{tuple(other.shape)} instead of {tuple(one.shape)} for {_CHECKED_BATCH} samples"
            raise ModelError(f"Output {index} of the traced network has the shape {shapes}. {_REPORT}")
        if not one.is_floating_point():
            continue
        finite = one.isfinite()
        scale = one[finite].abs().max() if finite.any() else one.new_zeros(())
        difference = (one - other)[finite].abs().max() if finite.any() else one.new_zeros(())
        if not torch.equal(finite, other.isfinite()) or difference > _TOLERANCE * scale:
            raise ModelError(
                f"Output {index} of the traced network differs by {float(difference):.2g} where the largest is "
                f"{float(scale):.2g}. {_REPORT}"
            )


_REPORT = (
    "The forward pass is random, keeps state between calls, or changes tensors in a way that tracing does not see. "
    "Remove that, or use the calibrator 'pytorch-quantization', which does not trace."
)
