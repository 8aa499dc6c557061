"""The names in a specification against the parameters of forward, and integer inputs: refused with what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

import dfq_plugins as dfq
from dfq_plugins.errors import DataError, UsageError
from dfq_plugins.network.signature import check_call
from dfq_plugins.types import InputSpec, NetworkSpec
from networks_by_input import AnyPositional, ImageAndMetadata, KeywordOnly, OneDictionary, example

if TYPE_CHECKING:
    from dfq_plugins.types import Specification

IMAGE, META = InputSpec((3, 12, 12)), InputSpec((4,))


def both(call: str = "keywords", **names: InputSpec) -> NetworkSpec:
    return NetworkSpec(names or {"image": IMAGE, "meta": META}, call=call)  # type: ignore[arg-type]


class PositionalOnly(nn.Module):
    def forward(self, image: Tensor, meta: Tensor, /) -> Tensor:
        return image.mean((1, 2, 3)) + meta.mean(1)


@pytest.mark.parametrize(
    ("network", "spec", "message"),
    [
        (
            ImageAndMetadata(),
            IMAGE,
            r"takes several inputs, forward\(image, meta\), but .* of shape \(3, 12, 12\)\. Give .*--input meta:SHAPE",
        ),
        (KeywordOnly(), IMAGE, r"takes its input by keyword only, forward\(pixels, scale=1\.0\)"),
        (ImageAndMetadata(), both(image=IMAGE), r"lacks 'meta'\. Add an InputSpec under that name"),
        (
            ImageAndMetadata(),
            both(image=IMAGE, mata=META),
            r"takes forward\(image, meta\), but the specification names 'mata'\. Use the names of its parameters",
        ),
        (OneDictionary(), both(), r"names 'image', 'meta'.*if it takes one dictionary, set call=\"dictionary\""),
        (PositionalOnly(), both(), r"names 'image', 'meta'\. Set call=\"positional\""),
        (AnyPositional(), both(), r'names \'image\', \'meta\'\. Set call="positional"'),
        (ImageAndMetadata(), both("dictionary"), r"passes one dictionary\. Set call=\"keywords\""),
        (ImageAndMetadata(), both("positional", image=IMAGE), r"gives 1 inputs by position, without 'meta'"),
        (
            ImageAndMetadata(),
            both("positional", image=IMAGE, meta=META, other=META),
            r"gives 3 inputs by position\. Leave out",
        ),
    ],
)
def test_other_inputs_than_those_of_forward_are_refused(network: nn.Module, spec: Specification, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_call(network, spec)
    with pytest.raises(UsageError, match=message):
        dfq.synthesize(network.eval(), spec, num_samples=8, generator="gaussian")


@pytest.mark.parametrize(
    ("network", "spec"),
    [
        (ImageAndMetadata(), both()),
        (ImageAndMetadata(), both("positional")),
        (PositionalOnly(), both("positional")),
        (AnyPositional(), both("positional")),
        (OneDictionary(), both("dictionary")),
        (KeywordOnly(), both(pixels=IMAGE)),
    ],
)
def test_the_inputs_of_forward_are_accepted(network: nn.Module, spec: Specification) -> None:
    check_call(network, spec)


def test_several_inputs_cannot_be_inferred() -> None:
    with pytest.raises(UsageError, match=r"forward\(image, meta\), whose shapes cannot be inferred\. Give .* --input"):
        dfq.synthesize(ImageAndMetadata().eval(), num_samples=8)


class Tokens(nn.Module):
    """Embeds the tokens of its input, and adds an image."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.linear, self.norm = nn.Embedding(9, 4), nn.Linear(4, 3), nn.BatchNorm1d(3)

    def forward(self, tokens: Tensor, image: Tensor | None = None) -> Tensor:
        hidden: Tensor = self.norm(self.linear(self.embed(tokens).mean(1)))
        return hidden if image is None else hidden + image.mean()


class Table(nn.Module):
    """Looks rows up without an embedding layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.rand(9, 3))

    def forward(self, index: Tensor) -> Tensor:
        return self.table[index].mean(1)


@pytest.mark.parametrize(
    ("network", "spec", "which"),
    [
        (Tokens(), InputSpec((5,)), "its input"),
        (Tokens(), both(tokens=InputSpec((5,)), image=IMAGE), "the input 'tokens'"),
        (Table(), InputSpec((5,)), "its input"),
    ],
)
def test_integer_inputs_are_refused_with_what_to_do(network: nn.Module, spec: Specification, which: str) -> None:
    message = f"takes integers for {which}. .*quantize the part of the network behind their embedding"
    with pytest.raises(UsageError, match=message):
        dfq.synthesize(network.eval(), spec, num_samples=8, generator="gaussian")


def test_the_part_behind_an_embedding_can_be_quantized() -> None:
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(5), nn.Flatten(), nn.Linear(15, 2)).eval()
    with torch.no_grad():
        network[1].running_mean.fill_(0.1)
    data = dfq.synthesize(network, InputSpec((5, 4)), num_samples=32, options={"iterations": 2, "compile": "never"})
    assert dfq.run_quantization(network, data, calibrator="pytorch-quantization").coverage.layers


def test_real_data_of_integers_is_refused_with_what_to_do() -> None:
    found = example("table")
    with pytest.raises(DataError, match=r"got torch\.int64 for inputs\..*behind their embedding"):
        dfq.quantize(found.network, torch.ones(4, 7, dtype=torch.long), calibrator="torch-ao")
