"""Trial runs of a network: which inputs it accepts, what it returns, and whether it is finite."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dfq_plugins.errors import INTEGER_INPUTS, ModelError, UsageError, first_line
from dfq_plugins.inputs import blank_inputs, cloned, count, moved
from dfq_plugins.model_state import device_of
from dfq_plugins.network.outputs import sample_outputs
from dfq_plugins.network.signature import check_call, signature_of
from dfq_plugins.types import InputSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfq_plugins.types import Inputs, Specification

CANDIDATE_SIZES = (8, 16, 24, 28, 32, 48, 64, 96, 128, 160, 192, 224, 256, 299, 384)
"""Square image sizes to try on a network that may accept only one."""

TRIAL_SAMPLES = 2


def check_finite(model: nn.Module) -> None:
    """Reject a model with NaN or infinite parameters or buffers, or with a BatchNorm that divides by no number.

    Raises:
        ModelError: a tensor is not finite, or a variance plus eps is not positive; the message names the first few.
    """
    wrong = [
        name
        for name, value in model.state_dict().items()
        if isinstance(value, torch.Tensor) and value.is_floating_point() and not bool(value.isfinite().all())
    ]
    if wrong:
        raise ModelError(
            f"Weights and statistics must be finite, but NaN or infinity was found in {wrong[:5]}. "
            "Load a valid checkpoint."
        )
    undefined = [
        name
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        and isinstance(module.running_var, torch.Tensor)
        and float(module.running_var.min()) + module.eps <= 0
    ]
    if undefined:
        raise ModelError(
            f"A BatchNorm divides by the root of running_var + eps, which must be positive, but is not in "
            f"{undefined[:5]}, so the network returns NaN. Load a valid checkpoint."
        )


def require_numbers(model: nn.Module, inputs: Inputs, spec: Specification) -> None:
    """Reject a model that returns NaN for given samples: NaN can be neither compared nor quantized.

    Args:
        model: the float network.
        inputs: `(samples, *shape)`, or a dictionary of them by name.
        spec: its specification.

    Raises:
        ModelError: an output holds NaN; the message names it and the number of samples.
    """
    samples = count(inputs)
    with torch.no_grad():
        returned = spec.run(model, moved(cloned(inputs), device_of(model)))
    for name, tensor in sample_outputs(returned, samples).items():
        wrong = int(tensor.isnan().reshape(samples, -1).any(1).sum())
        if wrong:
            raise ModelError(
                f"A network must return numbers, but {name!r} of {type(model).__name__} holds NaN for {wrong} of "
                f"{samples} samples. Check the weights and the range of the inputs."
            )


def infer_shape(model: nn.Module) -> tuple[int, ...]:
    """Return the shape of one input sample if the model accepts only one.

    Raises:
        UsageError: several sizes, or none of those tried, are accepted, or the model takes several inputs.
    """
    _refuse_several(model)
    first = next((m for m in model.modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear))), None)
    if isinstance(first, nn.Linear):
        return (first.in_features,)
    if isinstance(first, nn.Conv2d):
        shapes = ((first.in_channels, size, size) for size in CANDIDATE_SIZES)
        fits = list(itertools.islice((shape for shape in shapes if _accepts(model, shape)), 2))
        if len(fits) == 1:
            return fits[0]
    channels = "channels" if first is None else str(first.in_channels)
    axes = {nn.Conv1d: ("length",), nn.Conv3d: ("depth", "height", "width")}
    wanted = (channels, *axes.get(type(first), ("height", "width")))  # type: ignore[arg-type]
    raise UsageError(
        f"The spatial size of the input cannot be inferred from {type(model).__name__}. Pass "
        f"InputSpec(shape=({', '.join(wanted)})), or --shape {','.join(wanted).upper()} on the command line."
    )


def _accepts(model: nn.Module, shape: tuple[int, ...]) -> bool:
    try:
        trial_run(model, InputSpec(shape))
    except ModelError:
        return False
    return True


def _refuse_several(model: nn.Module) -> None:
    """Reject a model with several inputs: which of its layers reads which is not known."""
    signature = signature_of(model)
    if signature is None or len(signature.required) < 2:  # noqa: PLR2004  several
        return
    names = signature.required
    raise UsageError(
        f"{type(model).__name__} takes several inputs, {signature.text}, whose shapes cannot be inferred. Give the "
        f"specification of each by name, {{{', '.join(f'{name!r}: InputSpec(...)' for name in names)}}}, or "
        f"{' '.join(f'--input {name}:SHAPE' for name in names)} on the command line."
    )


def trial_run(model: nn.Module, spec: Specification) -> dict[str, torch.Tensor]:
    """Run the model on two blank samples and return its outputs by name; see `network.outputs.sample_outputs`.

    Raises:
        UsageError: the model takes other inputs than those of the specification, integers, or a list of images.
        ModelError: the model does not accept inputs of that shape, or returns no floating-point tensor with one entry
            per sample.
    """
    return sample_outputs(blank_run(model, spec), TRIAL_SAMPLES)


def blank_run(model: nn.Module, spec: Specification) -> Any:
    """Run the model on two blank samples and return whatever it returns.

    Raises:
        UsageError: the model takes other inputs than those of the specification, integers, or a list of images.
        ModelError: the model does not accept inputs of that shape.
    """
    check_call(model, spec)
    kind = next(model.parameters(), torch.empty(0)).dtype
    blank = blank_inputs(spec, TRIAL_SAMPLES, device_of(model), kind)
    try:
        with torch.no_grad():
            outputs = spec.run(model, blank)
    except Exception as error:
        _refuse_lists(model, spec, blank)
        _refuse_integers(model, spec, blank)
        given = "; ".join(f"{name} {one.shape}" for name, one in spec.named.items())
        shapes = given if len(spec.named) > 1 else str(next(iter(spec.named.values())).shape)
        message = (
            f"The model does not accept inputs of shape {shapes} (channels first, without the batch): "
            f"{first_line(error)}. "
            "Give the shape of one sample as the network expects it."
        )
        raise ModelError(message) from error
    if isinstance(outputs, (list, tuple)) and any(isinstance(found, Mapping) for found in outputs):
        _refuse_lists(model, spec, blank)
    return outputs


def takes_list(model: nn.Module, samples: torch.Tensor) -> bool:
    """Return whether a model runs on a list of samples, as detectors in evaluation mode do.

    Args:
        model: the model.
        samples: a batch `(samples, ...)`.
    """
    spec = InputSpec(tuple(samples.shape[1:]))
    return _runs(lambda given: model(list(given)), spec, samples)


def _refuse_lists(model: nn.Module, spec: Specification, blank: Inputs) -> None:
    """Reject a model that takes a list of images.

    Raises:
        UsageError: it does.
    """
    if isinstance(spec, InputSpec) and takes_list(model, blank):
        raise UsageError(
            f"{type(model).__name__} takes a list of images, whose detections are selected by their values: it cannot "
            "be quantized as a whole. Quantize its backbone and heads, and keep the steps around them, with "
            "dfq_plugins.quantize_parts(model, data, calibrator=...)."
        )


def _refuse_integers(model: nn.Module, spec: Specification, blank: Inputs) -> None:
    """Reject a model that fails on floating-point inputs and runs where some of them are integers.

    Raises:
        UsageError: it does; the message names the inputs.
    """
    names = tuple(spec.named)
    for chosen in (*((name,) for name in names), names):
        if _runs(model, spec, _as_integers(blank, chosen)):
            which = "its input" if len(names) == 1 else f"the input {chosen[0]!r}"
            which = which if len(chosen) == 1 else "all its inputs"
            raise UsageError(f"{type(model).__name__} takes integers for {which}. {INTEGER_INPUTS}")


def _as_integers(blank: Inputs, chosen: tuple[str, ...]) -> Inputs:
    if isinstance(blank, torch.Tensor):
        return blank.long()
    return {name: tensor.long() if name in chosen else tensor for name, tensor in blank.items()}


@torch.no_grad()
def _runs(model: Callable[..., Any], spec: Specification, inputs: Inputs) -> bool:
    try:
        spec.run(model, cloned(inputs))
    except Exception:  # noqa: BLE001  a forward raises whatever it likes
        return False
    return True
