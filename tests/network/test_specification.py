"""What a model must be: every refusal with its text, and what is read off a model."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import dfq_plugins
from dfq_plugins.errors import ModelError, UsageError
from dfq_plugins.network.specification import complete_spec, require_classes, resolve_spec
from dfq_plugins.network.trial import check_finite, infer_shape, trial_run
from dfq_plugins.statistics.requirements import require_batch_norm
from dfq_plugins.types import InputSpec

if TYPE_CHECKING:
    from collections.abc import Callable

INSTEAD = "Use the generator 'gaussian' or 'inception', which need no BatchNorm, or provide real samples."


def refusal(message: str) -> str:
    return "^" + re.escape(message) + "$"


def convolutional(*, size: int | None = None, channels: int = 3, bias: bool = False) -> nn.Sequential:
    """A small classifier; with `size` it has a fixed flatten width, so that only that input size fits."""
    head: list[nn.Module] = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)]
    if size is not None:
        head = [nn.Flatten(), nn.Linear(4 * (size // 2) ** 2, 5)]
    norm = nn.BatchNorm2d(4)
    norm.running_mean += 0.5
    return nn.Sequential(nn.Conv2d(channels, 4, 3, 2, 1, bias=bias), norm, nn.ReLU(), *head).eval()


# ------------------------------------------------------------------------------------------------ finite weights


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["0.weight", "1.running_mean", "1.running_var", "1.weight", "5.bias"])
def test_weights_and_statistics_that_are_not_finite_are_refused(name: str, value: float) -> None:
    network = convolutional()
    with torch.no_grad():
        network.state_dict()[name].view(-1)[0] = value
    message = (
        f"Weights and statistics must be finite, but NaN or infinity was found in ['{name}']. Load a valid checkpoint."
    )
    with pytest.raises(ModelError, match=refusal(message)):
        check_finite(network)


def test_a_sound_model_passes(tiny_network: nn.Module) -> None:
    check_finite(tiny_network)
    require_batch_norm(tiny_network)


# ------------------------------------------------------------------------------------------------ BatchNorm


def test_a_model_without_batch_norm_is_refused() -> None:
    message = f"Sequential has no BatchNorm layer with running statistics, so there is nothing to invert. {INSTEAD}"
    for network in (
        nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU()),
        nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)),
    ):
        with pytest.raises(ModelError, match=refusal(message)):
            require_batch_norm(network)


def test_a_batch_norm_without_statistics_is_not_taken_for_a_folded_one() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    message = "The BatchNorm layers of Sequential store no running statistics (track_running_stats=False), so there is"
    with pytest.raises(ModelError, match=re.escape(message)):
        require_batch_norm(network)


def test_a_model_with_folded_batch_norm_is_refused() -> None:
    network = convolutional()
    folded = nn.Sequential(fuse_conv_bn_eval(network[0], network[1]), *network[2:])  # type: ignore[type-var]
    message = (
        "Sequential has no BatchNorm layer, and all its convolutions have a bias: BatchNorm has probably been folded "
        f"into them. Pass the model from before folding. {INSTEAD}"
    )
    with pytest.raises(ModelError, match=refusal(message)):
        require_batch_norm(folded)


def test_batch_norm_that_was_never_trained_is_refused() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    message = (
        "All 2 BatchNorm layers still hold their initial statistics (mean 0, variance 1): the model was never trained, "
        f"or its weights were not loaded. Load trained weights. {INSTEAD}"
    )
    with pytest.raises(ModelError, match=refusal(message)):
        require_batch_norm(network)
    network[2].running_var *= 2
    require_batch_norm(network)


def test_a_negative_variance_is_refused() -> None:
    network = convolutional()
    network[1].running_var[2] = -0.1
    message = "Variances cannot be negative, but running_var is negative in ['1']. Load a valid checkpoint."
    with pytest.raises(ModelError, match=refusal(message)):
        require_batch_norm(network)


# ------------------------------------------------------------------------------------------------ shapes


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((1, 8, 8), "expected input[2, 1, 8, 8] to have 3 channels, but got 1 channels instead"),
        ((3, 8), "to have 3 channels, but got 2 channels"),  # torch takes the batch of two for the channels
        ((8, 8, 3), "to have 3 channels, but got 8 channels"),
    ],
)
def test_wrong_shapes_are_refused_with_torch_s_own_reason(shape: tuple[int, ...], reason: str) -> None:
    start = f"The model does not accept inputs of shape {shape} (channels first, without the batch): "
    end = "Give the shape of one sample as the network expects it."
    with pytest.raises(ModelError, match=f"^{re.escape(start)}.*{re.escape(reason)}.*{re.escape(end)}$") as caught:
        trial_run(convolutional(), InputSpec(shape))
    assert caught.value.__cause__ is not None


def test_an_error_without_text_is_named_by_its_type() -> None:
    class Silent(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            raise NotImplementedError

    with pytest.raises(ModelError, match=r"without the batch\): NotImplementedError\. Give"):
        trial_run(Silent(), InputSpec((3,)))


def test_models_that_return_no_values_are_refused() -> None:
    class Ranked(nn.Module):
        def forward(self, inputs: torch.Tensor) -> Any:
            return {"best": inputs.argmax(1), "scale": 0.5}

    message = "for 2 samples it returns best (2,) torch.int64. Wrap it in a module that returns the values before they"
    with pytest.raises(ModelError, match=re.escape(message)):
        trial_run(Ranked(), InputSpec((3,)))


# ------------------------------------------------------------------------------------------------ inference


def test_channels_and_size_are_read_off_a_network_that_leaves_no_choice() -> None:
    assert complete_spec(convolutional(size=32, channels=1)) == InputSpec((1, 32, 32))


def test_a_linear_first_layer_says_the_shape() -> None:
    network = nn.Sequential(nn.Linear(12, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).eval()
    assert complete_spec(network) == InputSpec((12,))


def test_whether_a_network_is_a_classifier_is_said_and_checked_but_never_guessed() -> None:
    registry: Any = Recognizer(KNOWN)
    vector, class_map = convolutional(), nn.Sequential(nn.Conv2d(3, 5, 3)).eval()
    for network in (vector, class_map):
        assert complete_spec(network, shape=(3, 16, 16)).num_classes is None
        for said in (0, 5):
            assert complete_spec(network, shape=(3, 16, 16), num_classes=said).num_classes == said
            assert resolve_spec(network, InputSpec((3, 16, 16), num_classes=said), registry).num_classes == said
        with pytest.raises(UsageError, match="Give the number of class logits, or 0 if the network is not"):
            complete_spec(network, shape=(3, 16, 16), num_classes=4)


@pytest.mark.parametrize("classes", [1, -1])
def test_a_single_logit_is_no_classifier(classes: int) -> None:
    with pytest.raises(UsageError, match=f"at least 2 class logits, got num_classes={classes}. Give 0 for a network"):
        InputSpec((3,), num_classes=classes)


def test_what_needs_classes_asks_for_them() -> None:
    network = convolutional()
    with pytest.raises(UsageError, match=r"Needed. Whether Sequential is a classifier is not known: set num_classes"):
        require_classes(network, InputSpec((3, 16, 16)), "Needed.")
    with pytest.raises(UsageError, match=r"Needed. Sequential has no logits \(samples, classes\)\."):
        require_classes(network, InputSpec((3, 16, 16), num_classes=0), "Needed.")
    require_classes(network, InputSpec((3, 16, 16), num_classes=5), "Needed.")


def test_what_is_given_is_kept() -> None:
    spec = complete_spec(
        convolutional(), shape=(3, 16, 16), mean=(0.5,) * 3, std=(0.2,) * 3, value_range=(0.0, 1.0), num_classes=5
    )
    assert spec == InputSpec((3, 16, 16), (0.5,) * 3, (0.2,) * 3, (0.0, 1.0), 5)


@pytest.mark.parametrize(
    ("network", "wanted"),
    [
        (convolutional, "3, height, width"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(7, 2)), "3, height, width"),
        (lambda: nn.Sequential(nn.Conv1d(2, 4, 3)), "2, length"),
        (lambda: nn.Sequential(nn.Conv3d(1, 4, 3)), "1, depth, height, width"),
        (lambda: nn.Sequential(nn.ReLU()), "channels, height, width"),
    ],
)
def test_a_size_that_cannot_be_known_is_asked_for(network: Callable[[], nn.Module], wanted: str) -> None:
    message = (
        f"The spatial size of the input cannot be inferred from Sequential. Pass InputSpec(shape=({wanted})), "
        f"or --shape {wanted.replace(', ', ',').upper()} on the command line."
    )
    with pytest.raises(UsageError, match=refusal(message)):
        infer_shape(network().eval())


class Recognizer:
    """Stands for a registry whose plugins know every model."""

    def __init__(self, spec: InputSpec) -> None:
        self.spec = spec

    def infer_input_spec(self, model: nn.Module) -> InputSpec:
        assert isinstance(model, nn.Module)
        return self.spec


KNOWN = InputSpec((3, 24, 24), (0.4,) * 3, (0.2,) * 3, (0.0, 1.0), 5)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, InputSpec((3, 24, 24), (0.4,) * 3, (0.2,) * 3, (0.0, 1.0), 5)),
        ({"shape": (3, 16, 16)}, InputSpec((3, 16, 16), (0.4,) * 3, (0.2,) * 3, (0.0, 1.0), 5)),
        (
            {"mean": (0.0,) * 3, "std": (1.0,) * 3, "value_range": (0.0, 255.0)},
            InputSpec((3, 24, 24), (0.0,) * 3, (1.0,) * 3, (0.0, 255.0), 5),
        ),
    ],
)
def test_a_plugin_that_knows_the_model_fills_in_what_is_not_given(given: dict[str, Any], expected: InputSpec) -> None:
    registry: Any = Recognizer(KNOWN)
    assert complete_spec(convolutional(), **given, registry=registry) == expected


def test_what_a_plugin_says_of_other_channels_is_not_taken_over() -> None:
    registry: Any = Recognizer(KNOWN)
    assert complete_spec(convolutional(channels=1), shape=(1, 8, 8), registry=registry) == InputSpec((1, 8, 8))


def test_half_a_normalization_is_not_silently_completed() -> None:
    registry: Any = Recognizer(KNOWN)
    for given in ({"mean": (0.1,) * 3}, {"std": (0.1,) * 3}):
        with pytest.raises(UsageError, match="mean and std go together: give both or neither"):
            complete_spec(convolutional(), **given, registry=registry)  # type: ignore[arg-type]


def test_what_is_given_is_checked_and_what_is_not_is_inferred_with_the_plugins() -> None:
    registry: Any = Recognizer(KNOWN)
    given = InputSpec((3, 8, 8))
    assert resolve_spec(convolutional(), given, registry) == InputSpec((3, 8, 8), num_classes=5)
    with pytest.raises(UsageError, match="num_classes is 7, but the model returns"):
        resolve_spec(convolutional(), InputSpec((3, 8, 8), num_classes=7), registry)
    inferred = resolve_spec(convolutional(), None, registry, shape=(3, 16, 16))
    assert (inferred.shape, inferred.mean, inferred.value_range) == ((3, 16, 16), KNOWN.mean, KNOWN.value_range)


@pytest.mark.parametrize("verb", ["quantize", "finetune", "distill", "inspect"])
def test_every_verb_asks_the_plugins_what_they_know_of_the_model(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a plain tensor, too: torchvision's networks are known to take ImageNet's mean, std and range."""
    network = torchvision.models.get_model("squeezenet1_1", weights=None, num_classes=5).eval()
    seen: list[InputSpec] = []

    class Seen(Exception):  # noqa: N818  it only ends the work
        pass

    def keep(spec: InputSpec, *_: Any) -> None:
        seen.append(spec)
        raise Seen

    monkeypatch.setattr("dfq_plugins.data.calibration_data.InputBatches.check", lambda _, spec: keep(spec))
    inputs = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    settings: dict[str, Any] = {
        "quantize": {"calibrator": "torch-ao"},
        "finetune": {"calibrator": "torch-ao"},
    }.get(verb, {})
    arguments = {"distill": (network, network, inputs), "inspect": (inputs, network)}.get(verb, (network, inputs))
    with pytest.raises(Seen):
        getattr(dfq_plugins, verb)(*arguments, **settings)
    assert (seen[0].mean, seen[0].std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (seen[0].shape, seen[0].value_range) == ((3, 64, 64), (0.0, 1.0))
