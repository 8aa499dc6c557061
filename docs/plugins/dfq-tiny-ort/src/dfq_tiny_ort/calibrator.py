"""Takes a float model through ONNX, and through ONNX Runtime's own static quantization."""

import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

from dfq_plugins.errors import ArtifactError, DataError, UsageError
from dfq_plugins.quantization.artifacts import ArtifactRecipe, compare, write_artifacts
from dfq_plugins.quantization.onnx_module import load_onnx
from dfq_plugins.quantization.prepared import require_prepared_shape
from dfq_plugins.types import Artifact, Calibrator, Check, Coverage, InputSpec, Recipe
from dfq_tiny_ort.coverage import read_coverage
from dfq_tiny_ort.model import OnnxModel, export_float
from dfq_tiny_ort.plugin import OnnxRuntimeOptions

METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}


class OnnxRuntimeCalibrator(Calibrator):
    def __init__(self, options: OnnxRuntimeOptions) -> None:
        self.options = options

    def prepare(self, model: nn.Module, spec: InputSpec, recipe: Recipe, *, training: bool) -> OnnxModel:
        if training:
            raise UsageError("ONNX Runtime's static quantization cannot be trained. Use training=False.")
        if recipe != Recipe(8, 8):
            raise UsageError(f"ONNX Runtime quantizes convolutions only to w8a8, got {recipe}. Choose w8a8.")
        return OnnxModel(export_float(model, spec), spec)

    def calibrate(self, prepared: OnnxModel, batches: Iterable[Tensor]) -> None:
        reader = BatchReader(batches, require_own(prepared).spec)
        with tempfile.TemporaryDirectory() as folder:
            optimized, quantized = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
            quant_pre_process(onnx.load_from_string(prepared.program), optimized, skip_symbolic_shape=True)
            quantize_static(
                optimized,
                quantized,
                reader,
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=self.options.per_channel,
                reduce_range=self.options.reduce_range,
                calibrate_method=METHODS[self.options.method],
                extra_options={"TensorQuantOverrides": input_range(prepared.spec)},
            )
            prepared.quantized = quantized.read_bytes()
        prepared.samples = reader.first

    def convert(self, prepared: OnnxModel) -> OnnxModel:
        if require_own(prepared).quantized is None:
            raise UsageError("There are no ranges yet. Call calibrate() before convert().")
        converted = OnnxModel(prepared.quantized, prepared.spec)
        converted.samples = prepared.samples
        return converted

    def describe(self, converted: OnnxModel) -> Coverage:
        return read_coverage(converted.program)

    def export(self, converted: OnnxModel, spec: InputSpec, path: Path) -> tuple[Artifact, ...]:
        require_prepared_shape(spec, require_own(converted).spec)
        recipe = ArtifactRecipe(
            path / "model_tiny.onnx",
            "ONNX, QuantizeLinear/DequantizeLinear",
            write=lambda file: file.write_bytes(converted.program),
            check=lambda file: (check(OnnxModel(file.read_bytes(), spec), converted),),
        )
        return write_artifacts([recipe])

    def load(self, path: Path) -> nn.Module:
        return load_onnx(path, exact=False)  # as the converted model runs it


def require_own(model: nn.Module) -> OnnxModel:
    if not isinstance(model, OnnxModel):
        raise UsageError(f"tiny-ort works on what its own prepare() returned, got {type(model).__name__}.")
    return model


class BatchReader:
    """Hands batches to ONNX Runtime one by one, as its `CalibrationDataReader` does."""

    def __init__(self, batches: Iterable[Tensor], spec: InputSpec) -> None:
        self.batches, self.spec = iter(batches), spec
        self.first: Tensor | None = None

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        if batch is None:
            if self.first is None:
                raise DataError("Calibration needs at least one batch, got none. Give batches of inputs.")
            return None
        self.spec.check_batch(batch)
        self.first = batch.detach().cpu().float() if self.first is None else self.first
        return {"input": batch.detach().cpu().float().numpy()}


def input_range(spec: InputSpec) -> dict[str, list[dict[str, object]]]:
    """Give the input's quantizer the range that is known, whatever the data hold."""
    if spec.input_range is None:
        return {}
    low, high = (np.array(edge, dtype=np.float32) for edge in spec.input_range)
    return {"input": [{"quant_type": QuantType.QUInt8, "rmin": low, "rmax": high}]}


def check(loaded: OnnxModel, converted: OnnxModel) -> Check:
    """Run the file on calibration inputs, one and all at once."""
    if converted.samples is None:
        raise UsageError("Only a model that this calibrator converted can be exported. Call convert() first.")
    for inputs in (converted.samples[:1], converted.samples):
        agreement = compare(converted(inputs), loaded(inputs), converted.spec.num_classes)
        if not agreement.largest <= 1e-5:
            raise ArtifactError(f"The file must compute what the model does, but on {agreement}. Report the model.")
    return Check("loaded and run in ONNX Runtime", str(agreement))
