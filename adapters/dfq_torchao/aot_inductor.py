"""Compiles a converted model ahead of time into a package of machine code, and runs such packages."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree  # torch.utils.pytree is not public yet

from dfq_plugins.errors import DataError, first_line

_BATCH = "dfq_batch"
"""Key of a package's metadata: the number of samples that it takes."""


def compile_package(program: Any, path: Path, batch: int) -> None:
    """Compile an exported program with AOTInductor, its weights frozen and packed for int8 kernels, to `path`.

    The fusions of quantized operations are those that torchao registers with Inductor. With a free batch, the code that
    Inductor writes around int8 convolutions confuses the order of the axes: it computes something else, silently.

    Args:
        program: the program, its batch fixed.
        path: the file.
        batch: number of samples that it takes.
    """
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer  # noqa: F401, PLC0415  registers the fusions

    settings = {"freezing": True, "aot_inductor.metadata": {_BATCH: str(batch)}}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), torch.compiler.set_stance("default"):
        package = Path(folder) / "model.pt2"  # torch insists on the ending
        compiling: Any = torch._inductor.aoti_compile_and_package  # noqa: SLF001  its documented name
        compiling(program, package_path=str(package), inductor_configs=settings)
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
            return CompiledProgram(program, int(program.get_metadata()[_BATCH]))
    except Exception as error:
        raise DataError(
            f"{path} must be a readable package of AOTInductor for this kind of machine, but: "
            f"{first_line(error).rstrip('.')}. Export it again on this machine."
        ) from error


class CompiledProgram(nn.Module):
    """A compiled package, called like the network with any number of samples.

    Args:
        program: what torch loads from a package.
        batch: number of samples that the package takes at once.
    """

    def __init__(self, program: Any, batch: int) -> None:
        super().__init__()
        self.program, self.batch = program, batch

    @torch.no_grad()
    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Return what the network returns."""
        samples = next(len(leaf) for leaf in pytree.tree_leaves((inputs, named)) if isinstance(leaf, torch.Tensor))
        parts = [self._run(start, min(self.batch, samples - start), inputs, named) for start in self._starts(samples)]
        return pytree.tree_map(lambda *leaves: _joined(leaves, self.batch), *parts)

    def _starts(self, samples: int) -> range:
        return range(0, max(samples, 1), self.batch)

    def _run(self, start: int, count: int, inputs: Any, named: Any) -> Any:
        """Return the results for some samples; missing ones of the batch are repeated, and their results cut off."""

        def part(tensor: torch.Tensor) -> torch.Tensor:
            chosen = tensor[start : start + count]
            missing = [chosen[-1:]] * (self.batch - count)
            return torch.cat([chosen, *missing]).contiguous()  # the code ignores the strides of its inputs

        given: Any = pytree.tree_map_only(torch.Tensor, part, (inputs, named))
        returned = self.program(*given[0], **given[1])
        return pytree.tree_map_only(
            torch.Tensor, lambda result: result[:count] if _has_samples(result, self.batch) else result, returned
        )


def _has_samples(result: torch.Tensor, batch: int) -> bool:
    return result.ndim > 0 and len(result) == batch


def _joined(leaves: tuple[Any, ...], batch: int) -> Any:
    if isinstance(leaves[0], torch.Tensor) and leaves[0].ndim and len(leaves) > 1 and len(leaves[0]) == batch:
        return torch.cat(leaves)
    return leaves[0]
