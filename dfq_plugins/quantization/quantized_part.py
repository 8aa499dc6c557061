"""A quantized part in place of the float one: takes and returns what the part did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dfq_plugins.errors import ModelError
from dfq_plugins.model_state import device_of
from dfq_plugins.network.parts import Form, Nesting, as_inputs, call_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dfq_plugins.types import Specification


@dataclass(frozen=True)
class Variant:
    """A part quantized for one form of its calls.

    Args:
        form: the form.
        spec: the specification of the quantized network.
        result: how the part nests the tensors that it returns.
        network: the quantized network.
    """

    form: Form
    spec: Specification
    result: Nesting
    network: nn.Module

    def run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the tensors that the quantized network returns, on the device of its inputs."""
        return _run(self.network, self.spec, tensors)


class QuantizedPart(nn.Module):
    """Runs the variant for the shapes that it is given; plain attributes are those of the float part.

    The quantized networks are in `networks`, one for each set of shapes.
    """

    def __init__(self, name: str, part: nn.Module, variants: Sequence[Variant]) -> None:
        super().__init__()
        for key, value in _plain_attributes(part).items():
            if not hasattr(self, key):
                setattr(self, key, value)
        self._name = name
        self.networks = nn.ModuleList(variant.network for variant in variants)
        self._forms = [(variant.form, variant.spec, variant.result) for variant in variants]
        self.train(part.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the part returns.

        Raises:
            ModelError: no calibration data had these shapes.
        """
        call = call_of(self._name, args, kwargs)
        found = next((index for index, (form, _, _) in enumerate(self._forms) if form == call.form), None)
        if found is None:
            known = "; ".join(str(form) for form, _, _ in self._forms)
            raise ModelError(
                f"{self._name!r} is quantized for inputs of shape {known} (without the batch), got {call.form}. Resize "
                "the images to the size of the calibration data, or quantize with data of this size."
            )
        _, spec, result = self._forms[found]
        # Kernels need a sample: a second stage gets none where the first one finds nothing.
        tensors = call.tensors if call.samples else [t.new_zeros(1, *t.shape[1:]) for t in call.tensors]
        outputs = _run(self.networks[found], spec, tensors)
        if not call.samples:
            outputs = [output[:0] if len(output) == 1 else output for output in outputs]
        return result.filled(outputs)


def _plain_attributes(part: nn.Module) -> dict[str, Any]:
    """Return what networks ask their parts for, such as the number of channels; not methods, modules or tensors."""
    found = {}
    for key in dir(part):
        try:
            value = None if key.startswith("_") else getattr(part, key)
        except Exception:  # noqa: BLE001, S112  a property raises whatever it likes
            continue
        if value is not None and not callable(value) and not isinstance(value, Tensor):
            found[key] = value
    return found


def _run(network: nn.Module, spec: Specification, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors that a quantized network returns, on the device of its inputs."""
    device, own = tensors[0].device, device_of(network)
    returned = spec.run(network, as_inputs(spec, [tensor.to(own) for tensor in tensors]))
    leaves = pytree.tree_leaves(returned)
    return [leaf.to(device) for leaf in leaves if isinstance(leaf, Tensor)]
