"""The parts of Brevitas that this adapter calls, imported in one place with their import warnings silenced."""

from __future__ import annotations

from dfq_brevitas.notices import NOTICES
from dfq_plugins.quantization.notices import silenced

with silenced(NOTICES):
    import brevitas.nn as quant_nn
    import brevitas.nn.quant_layer as nonlinear
    from brevitas import config as brevitas_config
    from brevitas.backport.fx.node import map_arg
    from brevitas.core.function_wrapper import CeilSte
    from brevitas.core.function_wrapper.learned_round import LearnedRoundHardSigmoid, LearnedRoundSte
    from brevitas.core.quant.binary import BinaryQuant
    from brevitas.core.scaling.runtime import StatsFromParameterScaling
    from brevitas.core.scaling.standalone import (
        ParameterFromRuntimeStatsScaling,
        ParameterFromStatsFromParameterScaling,
    )
    from brevitas.core.stats import AbsPercentile
    from brevitas.export import export_onnx_qcdq, export_qonnx
    from brevitas.fx import GraphModule, Node
    from brevitas.fx.brevitas_tracer import symbolic_trace
    from brevitas.graph import quantize_impl
    from brevitas.graph.calibrate import bias_correction_mode, calibration_mode, quantization_status_manager
    from brevitas.graph.gptq import gptq_mode
    from brevitas.graph.quantize import layerwise_quantize, preprocess_for_quantize, quantize
    from brevitas.graph.quantize_impl import ADD_FNS, ADD_METHODS, act_handler, layer_handler
    from brevitas.graph.standardize import (
        DuplicateSharedStatelessModule,
        RemoveStochasticModules,
        TorchFunctionalToModule,
    )
    from brevitas.inject.enum import RestrictValueType, ScalingImplType, ScalingPerOutputType, StatsOp
    from brevitas.nn.quant_layer import QuantWeightBiasInputOutputLayer
    from brevitas.proxy.parameter_quant import WeightQuantProxyFromInjectorBase
    from brevitas.proxy.runtime_quant import ActQuantProxyFromInjectorBase
    from brevitas.quant import scaled_int
    from brevitas.quant.base import MSESymmetricScaleSubInjector
    from brevitas.quant.binary import SignedBinaryWeightPerTensorConst
    from brevitas.quant_tensor import QuantTensor

__all__ = [
    "ADD_FNS",
    "ADD_METHODS",
    "AbsPercentile",
    "ActQuantProxyFromInjectorBase",
    "BinaryQuant",
    "CeilSte",
    "DuplicateSharedStatelessModule",
    "GraphModule",
    "LearnedRoundHardSigmoid",
    "LearnedRoundSte",
    "MSESymmetricScaleSubInjector",
    "Node",
    "ParameterFromRuntimeStatsScaling",
    "ParameterFromStatsFromParameterScaling",
    "QuantTensor",
    "QuantWeightBiasInputOutputLayer",
    "RemoveStochasticModules",
    "RestrictValueType",
    "ScalingImplType",
    "ScalingPerOutputType",
    "SignedBinaryWeightPerTensorConst",
    "StatsFromParameterScaling",
    "StatsOp",
    "TorchFunctionalToModule",
    "WeightQuantProxyFromInjectorBase",
    "act_handler",
    "bias_correction_mode",
    "brevitas_config",
    "calibration_mode",
    "export_onnx_qcdq",
    "export_qonnx",
    "gptq_mode",
    "layer_handler",
    "layerwise_quantize",
    "map_arg",
    "nonlinear",
    "preprocess_for_quantize",
    "quant_nn",
    "quantization_status_manager",
    "quantize",
    "quantize_impl",
    "scaled_int",
    "symbolic_trace",
]
