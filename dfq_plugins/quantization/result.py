"""TODO."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
import torch
from dfq_plugins.network.memory import kept_memory
from dfq_plugins.synthesis.budget import Budget
from dfq_plugins.data.calibration_data import as_calibration_data
from dfq_plugins.network.trial import check_finite
from dfq_plugins.network.specification import checked_spec, complete_spec
from dfq_plugins.synthesis.compilation import writable_compile_cache
from dfq_plugins.network.digest import model_digest
from dfq_plugins.errors import UsageError
from dfq_plugins.host.registry import DEFAULT_GENERATOR
from dfq_plugins.host.broadcast import Broadcast
from dfq_plugins.data.manifest import GeneratorRecord
from dfq_plugins.model_state import frozen_copy, limited_threads, preserve_global_state
from dfq_plugins.data.plan import DatasetPlan
from dfq_plugins.host.provided import attributed
from dfq_plugins.storage.rank import Rank
from dfq_plugins.host.registry import get_registry
from dfq_plugins.synthesis.shard_maker import ShardMaker, write_dataset
from dfq_plugins.network.agreement import top1_agreement
from dfq_plugins.types import ProgressEvent, Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from torch import nn
    from dfq_plugins.data.calibration_data import CalibrationData
    from dfq_plugins.data.dataset import SyntheticDataset
    from dfq_plugins.host.provided import Provided
    from dfq_plugins.host.registry import Registry
    from dfq_plugins.types import Artifact, Coverage, DataGenerator, InputSpec

@dataclass(frozen=True)
class QuantizationRun:
    """A quantized model with everything that is known about it.

    Args:
        model: the framework's native object.
        calibrator: name of the calibrator.
        recipe: bit widths.
        coverage: which layers are quantized and how, and what stays in float.
        artifacts: exported files, each checked.
        agreement: share of the calibration inputs on which float and quantized model name the same class; NaN where
            the network is no classifier.
    """

    model: nn.Module
    calibrator: str
    recipe: Recipe
    coverage: Coverage
    artifacts: tuple[Artifact, ...]
    agreement: float
