"""The PT2E quantizers by name, and those that users bring."""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from dfq_plugins.errors import PluginError, UsageError
from dfq_shared.processor import saturates_pairs

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfq_plugins.types import Recipe
    from dfq_torchao.options import TorchaoOptions

BITS = 8
"""Bit width of weights and activations of the known quantizers."""

_OWN_BITS = ("weight_bits", "activation_bits")
"""Arguments with which a user's factory takes the recipe."""


def reduces_range(options: TorchaoOptions) -> bool:
    """Return whether 8-bit activations stay within 0..127, where the quantizer knows that setting."""
    if options.reduce_range is not None:
        return options.reduce_range
    return options.quantizer == "x86" and saturates_pairs()


def make_quantizer(options: TorchaoOptions, recipe: Recipe, *, training: bool) -> Any:
    """Return the quantizer that the options name, a `torchao.quantization.pt2e.quantizer.Quantizer`.

    A user's `package.module:factory` is called with the keyword arguments `is_qat` (whether the network will be
    trained) and `reduce_range`. If it also has the parameters `weight_bits` and `activation_bits`, it gets those of the
    recipe.

    Raises:
        UsageError: there is no such quantizer, it does not take the recipe, or the factory fails.
        PluginError: its framework is not installed.
    """
    factory = _factory(options.quantizer)
    settings: dict[str, Any] = {"is_qat": training, "reduce_range": reduces_range(options)}
    if options.quantizer not in _KNOWN and set(_OWN_BITS) <= set(inspect.signature(factory).parameters):
        settings |= {"weight_bits": recipe.weight_bits, "activation_bits": recipe.activation_bits}
    else:
        _check_recipe(recipe, options.quantizer)
    quantizer = _made(factory, settings, options.quantizer)
    if not callable(getattr(quantizer, "annotate", None)) or not callable(getattr(quantizer, "validate", None)):
        raise UsageError(
            f"A quantizer has the methods annotate and validate, but {options.quantizer} returned a "
            f"{type(quantizer).__name__}. Return a subclass of torchao.quantization.pt2e.quantizer.Quantizer."
        )
    return quantizer


def _check_recipe(recipe: Recipe, quantizer: str) -> None:
    if (recipe.weight_bits, recipe.activation_bits) != (BITS, BITS):
        raise UsageError(
            f"The PT2E quantizer {quantizer!r} quantizes weights and activations to 8 bits, got {recipe}. Choose w8a8, "
            f"or give a quantizer of your own as package.module:factory, with the parameters {' and '.join(_OWN_BITS)}."
        )


def _factory(name: str) -> Callable[..., Any]:
    if name in _KNOWN:
        return _KNOWN[name]
    module, separator, attribute = name.partition(":")
    if not separator or not module or not attribute:
        raise UsageError(
            f"quantizer must be one of {', '.join(_KNOWN)}, or package.module:factory, got {name!r}. Give the name of "
            "one, or where your own is made."
        )
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"The quantizer {name!r} cannot be imported: {error}. Correct the name.") from error
    factory = getattr(found, attribute, None)
    if not callable(factory):
        raise UsageError(f"{module} has no function {attribute!r} that makes a quantizer. Correct the name.")
    made: Callable[..., Any] = factory
    return made


def _made(factory: Callable[..., Any], settings: dict[str, Any], name: str) -> Any:
    try:
        return factory(**settings)
    except (UsageError, PluginError):
        raise
    except Exception as error:
        given = ", ".join(f"{key}={value}" for key, value in settings.items())
        raise UsageError(
            f"The quantizer {name!r} cannot be made with {given}: {type(error).__name__}: {error}. Its factory takes "
            "these keyword arguments."
        ) from error


def _x86(*, is_qat: bool, reduce_range: bool) -> Any:
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86  # noqa: PLC0415  only if named

    config = x86.get_default_x86_inductor_quantization_config(is_qat=is_qat, reduce_range=reduce_range)
    return x86.X86InductorQuantizer().set_global(config)


def _arm(*, is_qat: bool, reduce_range: bool) -> Any:
    from torchao.quantization.pt2e.quantizer import arm_inductor_quantizer as arm  # noqa: PLC0415  as above

    _refuse_reduced("arm", reduce_range=reduce_range)
    return arm.ArmInductorQuantizer().set_global(arm.get_default_arm_inductor_quantization_config(is_qat=is_qat))


def _xnnpack(*, is_qat: bool, reduce_range: bool) -> Any:
    _refuse_reduced("xnnpack", reduce_range=reduce_range)
    try:
        from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack  # noqa: PLC0415  as above
    except ImportError as error:
        raise _missing("xnnpack", "ExecuTorch", "executorch", error) from error
    config = xnnpack.get_symmetric_quantization_config(is_per_channel=True, is_qat=is_qat)
    return xnnpack.XNNPACKQuantizer().set_global(config)


def _openvino(*, is_qat: bool, reduce_range: bool) -> Any:
    _refuse_reduced("openvino", reduce_range=reduce_range)
    if is_qat:
        raise UsageError(
            "The quantizer 'openvino' places observers for calibration only. Calibrate without training, or train with "
            "another quantizer."
        )
    try:
        from nncf.experimental.torch.fx import OpenVINOQuantizer  # noqa: PLC0415  as above
    except ImportError as error:
        raise _missing("openvino", "NNCF", "nncf openvino", error) from error
    return OpenVINOQuantizer()


def _refuse_reduced(name: str, *, reduce_range: bool) -> None:
    if reduce_range:
        raise UsageError(f"The quantizer {name!r} has no reduced range. Omit reduce_range.")


def _missing(name: str, framework: str, packages: str, error: ImportError) -> PluginError:
    return PluginError(
        f"The quantizer {name!r} needs {framework}, which cannot be imported here: {error}. Install it with "
        f"pip install {packages}."
    )


_KNOWN: dict[str, Callable[..., Any]] = {"x86": _x86, "arm": _arm, "xnnpack": _xnnpack, "openvino": _openvino}
