"""PT2E quantizers as a user would bring them: by `package.module:factory`."""

from __future__ import annotations

from typing import Any

SEEN: list[dict[str, Any]] = []


def recorded(*, is_qat: bool, reduce_range: bool) -> Any:
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    SEEN.append({"is_qat": is_qat, "reduce_range": reduce_range})
    config = x86.get_default_x86_inductor_quantization_config(is_qat=is_qat, reduce_range=reduce_range)
    return x86.X86InductorQuantizer().set_global(config)


def of_any_width(*, is_qat: bool, reduce_range: bool, weight_bits: int, activation_bits: int) -> Any:
    SEEN.append({"weight_bits": weight_bits, "activation_bits": activation_bits})
    return recorded(is_qat=is_qat, reduce_range=reduce_range)


def of_nothing(**_settings: bool) -> Any:
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import X86InductorQuantizer

    return X86InductorQuantizer()


def not_a_quantizer(**_settings: bool) -> int:
    return 3


def without_arguments() -> Any:
    return None
