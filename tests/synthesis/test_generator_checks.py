"""Generators that break their contract are refused with the plugin's name, before anything is written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from dfq_plugins.errors import DataError
from dfq_plugins.host.loading import PluginSource
from dfq_plugins.host.plugin_info import PluginInfo
from dfq_plugins.synthesis.shard_maker import ShardMaker
from dfq_plugins.types import Batch, GeneratorEntry, InputSpec, NetworkSpec
from tiny_networks import TinyNetwork

if TYPE_CHECKING:
    from collections.abc import Callable

SPEC = InputSpec((3, 8, 8), (0.5,) * 3, (0.25,) * 3, (0.0, 1.0), 4)
GOOD = torch.zeros(4, 3, 8, 8)
CLASSES = torch.tensor([0, 1, 2, 3])


@pytest.fixture
def info() -> PluginInfo:
    return PluginInfo("generator", GeneratorEntry("gan", "", "m:C"), PluginSource("gan", "dfq-gan", "0.2"))


def made(info: PluginInfo, yielded: list[Any], **settings: Any) -> Batch:
    maker = ShardMaker(TinyNetwork().eval(), SPEC, lambda **_: iter(yielded), info, **{"bounded": True, **settings})
    return maker.make(8, seed=0)


@pytest.mark.parametrize(
    ("first", "message"),
    [
        (lambda: Batch(GOOD + 200), r"yielded values from 200 to 200, but the network's inputs lie between -2 and 2"),
        (
            lambda: Batch(GOOD.to(torch.complex64)),
            "dense floating-point inputs, but yielded torch.complex64",
        ),
        (lambda: Batch(GOOD.to_sparse()), "must yield dense floating-point inputs"),
        (lambda: Batch(GOOD.long()), "must yield dense floating-point inputs, but yielded torch.int64"),
        (lambda: Batch(GOOD.numpy()), "yielded inputs of type ndarray"),
        (lambda: GOOD, "yielded a Tensor instead of a Batch"),
        (lambda: None, "yielded a NoneType instead of a Batch"),
        (lambda: Batch(GOOD, CLASSES + 1), "yielded the label 4, but the network has 4 classes"),
        (lambda: Batch(GOOD, CLASSES - 7), "yielded the label -7, but the network has 4 classes"),
        (lambda: Batch(GOOD, CLASSES > 1), "must yield class numbers as integer labels, but yielded torch.bool"),
        (lambda: Batch(GOOD, CLASSES.float()), "must yield class numbers as integer labels"),
        (lambda: Batch(GOOD, CLASSES[:2]), r"yielded labels of shape \(2,\) for 4 samples"),
    ],
)
def test_what_breaks_the_contract_is_named(first: Callable[[], Any], message: str, info: PluginInfo) -> None:
    with pytest.raises(DataError, match=message) as caught:
        made(info, [first(), Batch(GOOD, CLASSES)])
    assert "generator 'gan' from dfq-gan 0.2" in str(caught.value)


def test_labels_come_in_all_batches_or_in_none(info: PluginInfo) -> None:
    with pytest.raises(DataError, match="yielded labels in 1 of 2 batches"):
        made(info, [Batch(GOOD, CLASSES), Batch(GOOD)])
    with pytest.raises(DataError, match="makes inputs for given classes, but yielded no labels"):
        made(info, [Batch(GOOD), Batch(GOOD)], conditional=True)
    assert made(info, [Batch(GOOD, CLASSES), Batch(GOOD, CLASSES)]).labels.tolist() == [0, 1, 2, 3] * 2


def test_a_buffer_that_is_used_again_is_copied(info: PluginInfo) -> None:
    def reusing(**_: Any) -> Any:
        buffer = torch.zeros(4, 3, 8, 8)
        for value in (0.5, -0.5):
            yield Batch(buffer.fill_(value))

    batch = ShardMaker(TinyNetwork().eval(), SPEC, reusing, info, bounded=True).make(8, seed=0)
    assert batch.inputs[:, 0, 0, 0].tolist() == [0.5] * 4 + [-0.5] * 4


def test_an_option_may_let_values_leave_the_range(info: PluginInfo) -> None:
    assert made(info, [Batch(GOOD + 200), Batch(GOOD)], bounded=False).inputs.max() == 200


def test_each_of_several_inputs_has_its_range(info: PluginInfo) -> None:
    spec = NetworkSpec({"a": InputSpec((2,), value_range=(0, 1)), "b": InputSpec((2,))})
    batch = Batch({"a": torch.full((4, 2), 3.0), "b": torch.full((4, 2), 300.0)})
    maker = ShardMaker(TinyNetwork(), spec, lambda **_: iter([batch]), info, bounded=True)
    with pytest.raises(DataError, match="inputs lie between 0 and 1"):
        maker.make(4, seed=0)
