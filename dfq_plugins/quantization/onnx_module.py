"""An ONNX file as a torch module: ONNX Runtime computes it, tensors go in and come out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import onnx
import torch
from torch import nn

from dfq_plugins.errors import DataError, first_line
from dfq_plugins.inputs import split
from dfq_plugins.network.outputs import nested_outputs
from dfq_plugins.quantization.onnx_runtime import default_session, exact_session, run_session
from dfq_plugins.quantization.output_names import path_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class OnnxModule(nn.Module):
    """Runs an ONNX program on the CPU, without gradients. It holds the program itself, so it can be copied.

    It takes any batch size. A program for a fixed batch size is run several times, so that it takes multiples of that
    size.

    Args:
        program: content of an ONNX file with inputs `(samples, *shape)`.
        exact: run each operator as it is written, rather than with ONNX Runtime's default optimizations, whose int8
            kernels may saturate and round differently from processor to processor.
        structured: return the outputs in the structure of the exported network, which their names describe; see
            `dfq_plugins.quantization.output_names`. Otherwise one output is a tensor, several are a dictionary.

    Raises:
        ArtifactError: ONNX Runtime cannot load the program.
        DataError: the program has no input.
    """

    def __init__(self, program: bytes, *, exact: bool = True, structured: bool = False) -> None:
        super().__init__()
        self.program, self.exact, self.structured = program, exact, structured
        self.session = self._open_session()
        inputs = self.session.get_inputs()
        if not inputs:
            raise DataError("The ONNX program must have an input, but it has none. Give an exported network.")
        self._shapes = {value.name: tuple(value.shape) for value in inputs}

    def forward(self, *inputs: Any, **named: torch.Tensor) -> Any:
        """Return the program's outputs for inputs `(samples, *shape)`.

        In the structure of a network, lists come back as tuples, records as dictionaries, and only tensors.

        Args:
            inputs: the inputs in the order of the program, or one dictionary of them by name.
            named: the inputs by name.

        Raises:
            DataError: the inputs do not have the names and shapes that the program takes.
        """
        given = self._by_name(inputs, named)
        sizes = {self._batch_size(tensor, self._shapes[name]) for name, tensor in given.items()}
        fixed = next((size for size in sizes if size is not None), None)
        batches = [given] if fixed is None else split(given, fixed)
        runs = [
            run_session(self.session, {name: tensor.detach().cpu().float().numpy() for name, tensor in batch.items()})
            for batch in batches
        ]
        outputs = [torch.cat([torch.from_numpy(part) for part in parts]) for parts in zip(*runs, strict=True)]
        found = dict(zip([value.name for value in self.session.get_outputs()], outputs, strict=True))
        if self.structured:
            return nested_outputs({path_of(name, self._shapes): output for name, output in found.items()})
        return outputs[0] if len(outputs) == 1 else found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "session": None}  # a session cannot be copied

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # untyped in torch
        self.session = self._open_session()

    def _open_session(self) -> Any:
        return exact_session(self.program) if self.exact else default_session(self.program)

    def _by_name(self, inputs: tuple[Any, ...], named: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if len(inputs) == 1 and isinstance(inputs[0], Mapping):
            given = {**inputs[0], **named}
        elif len(self._shapes) == 1 and len(inputs) + len(named) == 1:
            given = dict(zip(self._shapes, (*inputs, *named.values()), strict=True))
        else:
            given = {**dict(zip(self._shapes, inputs, strict=False)), **named}
        if set(given) != set(self._shapes) or len(inputs) > len(self._shapes):
            raise DataError(
                f"The program takes the inputs {', '.join(self._shapes)}, got {', '.join(given) or 'none'}. Give each "
                "of them once, by name or in this order."
            )
        return {name: given[name] for name in self._shapes}

    @staticmethod
    def _batch_size(inputs: torch.Tensor, expected: tuple[Any, ...]) -> int | None:
        """Return the batch size that the program is fixed to, if it is, and check the shape of an input."""
        size, *shape = expected
        fixed = size if isinstance(size, int) else None
        fits = inputs.ndim == len(expected) and all(
            found == wanted for found, wanted in zip(inputs.shape[1:], shape, strict=True) if isinstance(wanted, int)
        )
        if not fits or (fixed is not None and (len(inputs) == 0 or len(inputs) % fixed)):
            samples = "samples" if fixed in (None, 1) else f"a multiple of {fixed}"
            raise DataError(
                f"A batch of inputs must have the shape ({', '.join(map(str, (samples, *shape)))}), got "
                f"{tuple(inputs.shape)}. Give inputs of the shape that the model was exported for."
            )
        return fixed


def load_onnx(
    path: Path, *, rewrite: Callable[[Any], Any] | None = None, exact: bool = True, structured: bool = False
) -> OnnxModule:
    """Read an ONNX file as a module.

    Args:
        path: the file.
        rewrite: turns its `onnx.ModelProto` into one in operators that ONNX Runtime has; None if it already is.
        exact: see `OnnxModule`.
        structured: see `OnnxModule`.

    Raises:
        DataError: the file cannot be read, or is not an ONNX file that ONNX Runtime can load.
    """
    try:
        program = path.read_bytes()
        if rewrite is not None:
            program = rewrite(onnx.load_from_string(program)).SerializeToString()
        return OnnxModule(program, exact=exact, structured=structured)
    except MemoryError:
        raise
    except Exception as error:  # protobuf's, onnx's and ONNX Runtime's own
        reason = first_line(error.__cause__ or error).rstrip(".")
        raise DataError(
            f"{path} must be a readable ONNX file of a quantized model, but: {reason}. Export it again."
        ) from error
