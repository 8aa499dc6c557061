"""The observers and fake quantizers of torch.ao."""

from __future__ import annotations

from torch.ao.quantization import (
    FakeQuantizeBase,
    FixedQParamsFakeQuantize,
    FixedQParamsObserver,
    MinMaxObserver,
    ObserverBase,
)

from dfq_shared.observers import ObserverFamily

FAMILY = ObserverFamily(
    observer=ObserverBase,
    fixed_observer=FixedQParamsObserver,
    fake_quantizer=FakeQuantizeBase,
    fixed_fake_quantizer=FixedQParamsFakeQuantize,
    min_max=MinMaxObserver,
)
observer_of = FAMILY.observer_of
known_range = FAMILY.known_range
