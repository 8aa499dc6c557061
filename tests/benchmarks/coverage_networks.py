"""The rows of the coverage table: public networks with random weights, and structured images to settle them on.

No weights are downloaded. Parameters that a fresh network starts at a constant are drawn as training would leave them,
and BatchNorm's statistics come from a few passes over the images, so that no branch is switched off.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfq_plugins import InputSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SEED = 0
BATCH_SIZE = 8
BATCH_NORM_PASSES = 6

_SWITCHED_OFF = 0.1
"""Below this value, a branch's scale is one that training has to raise: 0 or 1e-6."""

Batch = Any
"""What one call of the network takes: a tensor, a list of images, or a tuple of tensors."""


@dataclass(frozen=True)
class Network:
    """One row of the table.

    Args:
        name: name of the row, e.g. `timm/resnet10t`.
        build: returns the network with random weights.
        shape: shape of one sample, without the batch axis.
        samples: number of calibration samples, and of fresh samples for the comparison.
        takes: what the network is called with: one tensor, two tensors, or a list of images.
    """

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = (3, 64, 64)
    samples: int = 16
    takes: Literal["tensor", "pair", "images"] = "tensor"

    @property
    def spec(self) -> InputSpec:
        """Specification of the input; detectors normalize by themselves."""
        if self.takes == "images":
            return InputSpec(self.shape, value_range=(0.0, 1.0))
        channels = self.shape[0]
        return InputSpec(self.shape, (0.5,) * channels, (0.25,) * channels, (0.0, 1.0))

    def batches(self, seed: int) -> list[Batch]:
        """Return the batches of one seed, as the network takes them."""
        inputs = self._inputs(seed).split(BATCH_SIZE)
        if self.takes == "pair":
            return list(zip(inputs, self._inputs(seed + 1000).split(BATCH_SIZE), strict=True))
        return [list(batch) for batch in inputs] if self.takes == "images" else list(inputs)

    def _inputs(self, seed: int) -> Tensor:
        raw = structured_images(self.shape, self.samples, seed)
        return raw if self.takes == "images" else (raw - 0.5) / 0.25

    def settled(self) -> nn.Module:
        """Return the network in eval mode, with drawn parameters and measured BatchNorm statistics."""
        torch.manual_seed(SEED)
        network = self.build().eval()
        draw_constant_parameters(network)
        with measured_batch_norm(network), torch.no_grad():
            for seed in range(BATCH_NORM_PASSES):
                for batch in self.batches(seed + 100):
                    call(network, batch)
        return network.eval()


def call(network: Callable[..., Any], batch: Batch) -> Any:
    """Return the output for one batch; a tuple holds several inputs."""
    return network(*batch) if isinstance(batch, tuple) else network(batch)


def structured_images(shape: tuple[int, ...], count: int, seed: int) -> Tensor:
    """Return images or clips `(count, *shape)` in 0..1: a colored plane wave each, smooth noise and white noise."""
    rng = torch.Generator().manual_seed(seed)
    channels, *sizes = shape
    axes = torch.stack(torch.meshgrid(*(torch.linspace(0, 1, size) for size in sizes), indexing="ij"))
    frequencies = 1 + 6 * torch.rand(count, len(sizes), generator=rng)
    phases = 2 * math.pi * torch.rand(count, *(1 for _ in sizes), generator=rng)
    waves = torch.sin(2 * math.pi * torch.einsum("na,a...->n...", frequencies, axes) + phases)
    colors = torch.randn(count, channels, *(1 for _ in sizes), generator=rng)
    coarse = torch.randn(count, channels, *(max(2, size // 8) for size in sizes), generator=rng)
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(sizes)]
    smooth = functional.interpolate(coarse, size=tuple(sizes), mode=mode)
    white = torch.randn(count, *shape, generator=rng)
    return torch.sigmoid(waves.unsqueeze(1) * colors + smooth + 0.1 * white)


@torch.no_grad()
def draw_constant_parameters(network: nn.Module) -> None:
    """Replace parameters of one repeated value: scales vary by half, biases by noise of 0.1.

    A random network is chaotic: it amplifies the rounding of a correct quantization until little is left of the
    output. So scales that start near 0, of residual branches, become 0.1 to 0.5, and BatchNorm's offsets lie around 1,
    where activation functions are nearly linear.
    """
    for name, parameter in network.named_parameters():
        first = float(parameter.flatten()[0]) if parameter.numel() else 0.0
        if bool((parameter != first).any()):
            continue
        if name.rpartition(".")[2].endswith("bias") or parameter.ndim > 1:
            parameter.add_(0.1 * torch.randn_like(parameter))
        elif abs(first) < _SWITCHED_OFF:
            parameter.uniform_(0.1, 0.5)
        else:
            parameter.mul_(0.5 + torch.rand_like(parameter))
    for norm in batch_norms(network):
        if norm.bias is not None:
            norm.bias.add_(1.0)


def batch_norms(network: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """Return the BatchNorm layers of a network."""
    return [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


@contextmanager
def measured_batch_norm(network: nn.Module) -> Iterator[None]:
    """Let BatchNorm alone train within the block, as an average over all batches; everything else stays in eval."""
    norms = batch_norms(network)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    yield
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


@dataclass(frozen=True)
class _Zoo:
    """Builds rows whose networks are found by name when they are needed."""

    library: str
    folder: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)

    def row(self, name: str, *, build: dict[str, Any] | None = None, **settings: Any) -> Network:
        prefix = f"{self.library}/{self.folder}." if self.folder else f"{self.library}/"
        return Network(prefix + name, partial(self._build, name, {**self.arguments, **(build or {})}), **settings)

    def _build(self, name: str, arguments: dict[str, Any]) -> Any:
        if self.library == "timm":
            import timm

            return timm.create_model(name, pretrained=False, **arguments)
        import torchvision

        models = torchvision.models
        return getattr(getattr(models, self.folder) if self.folder else models, name)(**arguments)


VISION = _Zoo("torchvision", arguments={"weights": None})
SEGMENTATION = _Zoo("torchvision", "segmentation", {"weights": None, "weights_backbone": None})
DETECTION = _Zoo("torchvision", "detection", {"weights": None, "weights_backbone": None})
VIDEO = _Zoo("torchvision", "video", {"weights": None})
FLOW = _Zoo("torchvision", "optical_flow", {"weights": None})
QUANTIZABLE = _Zoo("torchvision", "quantization", {"weights": None, "quantize": False})
TIMM = _Zoo("timm")

_DETECTOR: dict[str, Any] = {"shape": (3, 96, 96), "samples": 4, "takes": "images"}
_SMALL = {"min_size": 96, "max_size": 96}
_FEW_BOXES = {"box_detections_per_img": 4, "rpn_post_nms_top_n_test": 40}
"""With random weights every proposal is a detection, and each goes through the heads."""

_CLIP: dict[str, Any] = {"shape": (3, 8, 64, 64), "samples": 8}

_INITIALIZED = {"build": {"init_weights": True}}
"""Silences the notice about a default that is going to change."""

TORCHVISION_NETWORKS = (
    VISION.row("alexnet"),
    VISION.row("vgg11_bn"),
    VISION.row("resnet18"),
    VISION.row("resnet50"),
    VISION.row("resnext50_32x4d"),
    VISION.row("wide_resnet50_2"),
    VISION.row("densenet121"),
    VISION.row("googlenet", **_INITIALIZED),
    VISION.row("inception_v3", shape=(3, 96, 96), **_INITIALIZED),
    VISION.row("squeezenet1_1"),
    VISION.row("mobilenet_v2"),
    VISION.row("mobilenet_v3_small"),
    VISION.row("shufflenet_v2_x0_5"),
    VISION.row("mnasnet0_5"),
    VISION.row("efficientnet_b0"),
    VISION.row("efficientnet_v2_s"),
    VISION.row("regnet_y_400mf"),
    VISION.row("regnet_x_400mf"),
    VISION.row("convnext_tiny"),
    VISION.row("vit_b_16", build={"image_size": 64}),
    VISION.row("swin_t"),
    VISION.row("swin_v2_t"),
    VISION.row("maxvit_t", shape=(3, 224, 224), samples=4),
    SEGMENTATION.row("lraspp_mobilenet_v3_large", shape=(3, 96, 96)),
    SEGMENTATION.row("deeplabv3_mobilenet_v3_large", shape=(3, 96, 96)),
    SEGMENTATION.row("fcn_resnet50", samples=8),
    DETECTION.row("ssdlite320_mobilenet_v3_large", **_DETECTOR),
    DETECTION.row("retinanet_resnet50_fpn", build=_SMALL | {"score_thresh": 0.001}, **_DETECTOR),
    DETECTION.row("fasterrcnn_mobilenet_v3_large_320_fpn", build=_SMALL | _FEW_BOXES, **_DETECTOR),
    DETECTION.row("keypointrcnn_resnet50_fpn", build=_SMALL | _FEW_BOXES, **_DETECTOR),
    VIDEO.row("r3d_18", **_CLIP),
    VIDEO.row("mc3_18", **_CLIP),
    VIDEO.row("r2plus1d_18", **_CLIP),
    VIDEO.row("s3d", shape=(3, 16, 224, 224), samples=2),
    FLOW.row("raft_small", shape=(3, 128, 128), samples=2, takes="pair"),
    QUANTIZABLE.row("resnet18"),
    QUANTIZABLE.row("mobilenet_v2"),
    QUANTIZABLE.row("shufflenet_v2_x0_5"),
    QUANTIZABLE.row("googlenet", **_INITIALIZED),
    QUANTIZABLE.row("inception_v3", shape=(3, 96, 96), **_INITIALIZED),
)

TIMM_NETWORKS = (
    TIMM.row("resnet10t"),
    TIMM.row("resnetv2_50"),
    TIMM.row("resnetv2_50x1_bit"),
    TIMM.row("seresnet18"),
    TIMM.row("skresnet18"),
    TIMM.row("res2net50_14w_8s"),
    TIMM.row("resnest14d"),
    TIMM.row("efficientnet_lite0"),
    TIMM.row("mobilenetv4_conv_small_050"),
    TIMM.row("mobileone_s0"),
    TIMM.row("repvgg_a0"),
    TIMM.row("repghostnet_050"),
    TIMM.row("fastvit_t8"),
    TIMM.row("ghostnet_050"),
    TIMM.row("hrnet_w18_small"),
    TIMM.row("dla46_c"),
    TIMM.row("cspdarknet53"),
    TIMM.row("ese_vovnet19b_slim_dw"),
    TIMM.row("selecsls42"),
    TIMM.row("dpn48b"),
    TIMM.row("mixnet_s"),
    TIMM.row("lcnet_050"),
    TIMM.row("tinynet_e"),
    TIMM.row("rexnet_100"),
    TIMM.row("regnety_002"),
    TIMM.row("eca_nfnet_l0"),
    TIMM.row("vit_tiny_patch16_224", build={"img_size": 64}),
    TIMM.row("deit_tiny_patch16_224", build={"img_size": 64}),
    TIMM.row("levit_128s", build={"img_size": 64}),
    TIMM.row("swin_tiny_patch4_window7_224", build={"img_size": 64, "window_size": 2}),
    TIMM.row("convnextv2_atto"),
    TIMM.row("poolformerv2_s12"),
    TIMM.row("mobilevit_xxs"),
    TIMM.row("edgenext_xx_small"),
    TIMM.row("efficientvit_b0"),
    TIMM.row("mixer_s32_224", build={"img_size": 64}),
)

NETWORKS = {network.name: network for network in (*TORCHVISION_NETWORKS, *TIMM_NETWORKS)}
