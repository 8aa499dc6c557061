"""Number formats in words, for the command line and reports. Does not import torch."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dfq_plugins.types import Coverage, NumberFormat

FLOAT = "float"


def format_in_words(form: NumberFormat | None, *, with_range: bool = False) -> str:
    """Return a number format as text.

    Args:
        form: the format; None is floating point.
        with_range: include the range, if it is known.

    >>> from dfq_plugins.types import NumberFormat
    >>> uint4 = NumberFormat(4, signed=False, symmetric=False, per_channel=False, stored_bits=8, range=(0, 2.64))
    >>> format_in_words(uint4, with_range=True)
    'uint4 in 8 bits per tensor, 0 to 2.64'
    >>> format_in_words(NumberFormat(1, signed=True, symmetric=True, per_channel=True, stored_bits=1))
    'binary per channel'
    >>> format_in_words(None)
    'float'
    >>> format_in_words(NumberFormat(8, True, True, per_channel=False, stored_bits=8, exponent_bits=4))
    'float8 (e4m3) per tensor, symmetric'
    """
    if form is None:
        return FLOAT
    integer = "int" if form.signed else "uint"
    kind = "binary" if form.bits == 1 else f"{integer}{form.bits}"
    if form.exponent_bits:
        kind = f"float{form.bits} (e{form.exponent_bits}m{form.bits - 1 - form.exponent_bits})"
    stored = f" in {form.stored_bits} bits" if form.stored_bits > form.bits else ""
    granularity = "channel" if form.per_channel else "tensor"
    symmetric = ", symmetric" if form.symmetric and form.bits > 1 else ""
    limits = f", {form.range[0]:.4g} to {form.range[1]:.4g}" if with_range and form.range is not None else ""
    return f"{kind}{stored} per {granularity}{symmetric}{limits}"


def coverage_in_words(coverage: Coverage) -> list[str]:
    """Return one line for each combination of formats, with the number of layers or activations that have it.

    >>> from dfq_plugins.types import Coverage, NumberFormat, QuantizedTensor
    >>> int8 = NumberFormat(8, signed=True, symmetric=True, per_channel=False, stored_bits=8)
    >>> tensors = [QuantizedTensor(name, "Linear", "weight", int8) for name in ("first", "second")]
    >>> tensors += [QuantizedTensor("second", "Linear", "input", int8), QuantizedTensor("add", "add", "input", int8)]
    >>> for line in coverage_in_words(Coverage(tuple(tensors))):
    ...     print(line)
    1 x weights: int8 per tensor, symmetric; inputs: float
    1 x weights: int8 per tensor, symmetric; inputs: int8 per tensor, symmetric
    1 x inputs: int8 per tensor, symmetric
    """
    lines = [_layer_in_words(coverage, name) for name in coverage.layers]
    lines += [
        f"activations: {format_in_words(tensor.format)}" for tensor in coverage.quantized if tensor.role == "activation"
    ]
    return [f"{count} x {line}" for line, count in Counter(lines).items()]


def _layer_in_words(coverage: Coverage, name: str) -> str:
    weight, inputs = coverage.format_of(name, "weight"), coverage.format_of(name, "input")
    read = f"inputs: {format_in_words(inputs)}"
    return read if weight is None else f"weights: {format_in_words(weight)}; {read}"
