"""What is done with the inputs of a network, whether it has one (a tensor) or several (a dictionary by name)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from torch import Tensor

    from dfq_plugins.types import Inputs, InputSpec, Specification


def run_network(network: Callable[..., Any], inputs: Inputs, spec: Specification | None = None) -> Any:
    """Return a network's outputs for its inputs.

    Args:
        network: the network.
        inputs: a tensor, or a dictionary of tensors by name.
        spec: says how the network takes several inputs; None means by keywords.

    >>> run_network(lambda image, meta: (image, meta), {"image": 1, "meta": 2})
    (1, 2)
    """
    if spec is not None:
        return spec.run(network, inputs)
    return network(**inputs) if isinstance(inputs, Mapping) else network(inputs)


def map_inputs(function: Callable[..., Any], inputs: Inputs, *others: Inputs) -> Any:
    """Return `function(tensor, ...)` of each input, in the same form.

    >>> map_inputs(lambda first, second: first + second, {"a": 1, "b": 2}, {"a": 10, "b": 20})
    {'a': 11, 'b': 22}
    >>> map_inputs(abs, -1)
    1
    """
    if isinstance(inputs, Mapping):
        return {name: function(inputs[name], *(other[name] for other in others)) for name in inputs}
    return function(inputs, *others)


def leaves(inputs: Inputs) -> list[Any]:
    """Return the tensors in order.

    >>> leaves({"a": 1, "b": 2}), leaves(3)
    ([1, 2], [3])
    """
    return list(inputs.values()) if isinstance(inputs, Mapping) else [inputs]


def like(inputs: Inputs, tensors: Iterable[Any]) -> Any:
    """Return tensors in the form of `inputs`; the inverse of `leaves`.

    >>> like({"a": 1, "b": 2}, [3, 4])
    {'a': 3, 'b': 4}
    """
    values = list(tensors)
    return dict(zip(inputs, values, strict=True)) if isinstance(inputs, Mapping) else values[0]


def count(inputs: Inputs) -> int:
    """Return the number of samples.

    >>> count(torch.zeros(4, 3)), count({"a": torch.zeros(2, 3), "b": torch.zeros(2)})
    (4, 2)
    """
    return len(leaves(inputs)[0])


def device_of_inputs(inputs: Inputs) -> torch.device:
    """Return the device of the first input."""
    device: torch.device = leaves(inputs)[0].device
    return device


def moved(inputs: Inputs, device: torch.device | str, dtype: torch.dtype | None = None) -> Inputs:
    """Return the inputs on a device, and in a type if one is given."""
    return map_inputs(lambda tensor: tensor.to(device, dtype or tensor.dtype), inputs)


def cloned(inputs: Inputs) -> Inputs:
    """Return copies of the inputs, for a network that may write into them."""
    return map_inputs(torch.clone, inputs)


def rows(inputs: Inputs, indices: slice | int | Tensor) -> Inputs:
    """Return the samples at the indices.

    >>> rows({"a": torch.arange(4)}, slice(1, 3))
    {'a': tensor([1, 2])}
    """
    return map_inputs(lambda tensor: tensor[indices], inputs)


def joined(parts: Sequence[Inputs]) -> Inputs:
    """Concatenate batches.

    >>> joined([{"a": torch.zeros(1)}, {"a": torch.ones(1)}])
    {'a': tensor([0., 1.])}
    """
    return map_inputs(lambda *tensors: torch.cat(tensors), *parts)


def stacked(samples: Sequence[Inputs]) -> Inputs:
    """Stack samples into a batch."""
    return map_inputs(lambda *tensors: torch.stack(tensors), *samples)


def split(inputs: Inputs, sizes: int | Sequence[int]) -> Iterator[Inputs]:
    """Yield batches of one size, or of the given ones.

    >>> [count(part) for part in split({"a": torch.zeros(5)}, 2)]
    [2, 2, 1]
    """
    parts = [torch.split(tensor, sizes if isinstance(sizes, int) else list(sizes)) for tensor in leaves(inputs)]
    for part in zip(*parts, strict=True):
        yield like(inputs, part)


def blank_inputs(
    spec: Specification, samples: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Inputs:
    """Return inputs of zeros, `(samples, *shape)` each."""
    return spec.map(lambda one: torch.zeros(samples, *one.shape, device=device, dtype=dtype))


def random_inputs(spec: Specification, samples: int) -> Inputs:
    """Return the same uniform inputs each time, `(samples, *shape)`, each channel in its range (-1 to 1 if unknown)."""
    rng = torch.Generator().manual_seed(0)

    def drawn(one: InputSpec) -> Tensor:
        low, high = (
            torch.tensor(edge).view(1, -1, *(1,) * (len(one.shape) - 1))
            for edge in one.bounds or ((-1.0,) * one.channels, (1.0,) * one.channels)
        )
        return torch.rand((samples, *one.shape), generator=rng) * (high - low) + low

    return spec.map(drawn)
