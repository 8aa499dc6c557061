"""Compiles a converted model ahead of time into a package of machine code, and runs such packages."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dfq_plugins.errors import DataError, first_line


def compile_package(program: Any, path: Path) -> None:
    """Compile an exported program with AOTInductor, its weights frozen and packed for int8 kernels, to `path`.

    The fusions of quantized operations are those that torchao registers with Inductor.
    """
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer  # noqa: F401, PLC0415  registers the fusions

    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), torch.compiler.set_stance("default"):
        package = Path(folder) / "model.pt2"  # torch insists on the ending
        torch._inductor.aoti_compile_and_package(  # noqa: SLF001  its documented name
            program, package_path=str(package), inductor_configs={"freezing": True}
        )
        path.write_bytes(package.read_bytes())


def load_package(path: Path) -> nn.Module:
    """Load a compiled package as a module. It is machine code: load only files that you trust.

    Raises:
        DataError: the file cannot be read, or was compiled for another machine.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            package = Path(folder) / "model.pt2"
            package.write_bytes(path.read_bytes())
            program: Any = torch._inductor.aoti_load_package(str(package))  # noqa: SLF001  its documented name
    except Exception as error:
        raise DataError(
            f"{path} must be a readable package of AOTInductor for this kind of machine, but: "
            f"{first_line(error).rstrip('.')}. Export it again on this machine."
        ) from error
    return CompiledProgram(program)


class CompiledProgram(nn.Module):
    """A compiled package, called like the network.

    Args:
        program: what torch loads from a package.
    """

    def __init__(self, program: Any) -> None:
        super().__init__()
        self.program = program

    @torch.no_grad()
    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Return what the network returns. The code reads memory in the order of the axes, whatever the strides say."""
        given: Any = torch.utils._pytree.tree_map_only(torch.Tensor, torch.Tensor.contiguous, (inputs, named))  # noqa: SLF001
        return self.program(*given[0], **given[1])
