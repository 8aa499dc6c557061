"""Keeps the layers of chosen submodules in float, whatever the quantizer annotates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torchao.quantization.pt2e.quantizer import Quantizer, SharedQuantizationSpec

from dfq_plugins.errors import UsageError
from dfq_torchao.capture import origin_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn
    from torch.fx import GraphModule, Node

_ANNOTATION = "quantization_annotation"


def check_names(names: Sequence[str], network: nn.Module) -> None:
    """Refuse names of submodules that the network does not have.

    Raises:
        UsageError: there is one.
    """
    known = {name for name, _ in network.named_modules() if name}
    for name in names:
        if name not in known:
            raise UsageError(
                f"keep_float names submodules of the network, but it has no {name!r}. Give names as in "
                "network.named_modules()."
            )


def belongs_to(node: Node, names: Sequence[str]) -> bool:
    """Return whether a node computes a layer inside one of the submodules."""
    origin = origin_of(node)
    return bool(origin) and any(origin == name or origin.startswith(f"{name}.") for name in names)


class KeepingFloat(Quantizer):  # type: ignore[misc]  # torchao is not typed
    """A quantizer whose annotations of chosen submodules are taken back."""

    def __init__(self, quantizer: Any, names: Sequence[str]) -> None:
        super().__init__()
        self.quantizer, self.names = quantizer, names

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Let the quantizer prepare the graph."""
        transformed: GraphModule = self.quantizer.transform_for_annotation(model)
        return transformed

    def annotate(self, model: GraphModule) -> GraphModule:
        """Annotate, then take back what belongs to the submodules, and whatever shares its ranges."""
        self.quantizer.annotate(model)
        dropped = {node for node in model.graph.nodes if belongs_to(node, self.names)}
        while dropped:
            for node in dropped:
                node.meta.pop(_ANNOTATION, None)
            dropped = {node for node in model.graph.nodes if any(_is_lost(shared) for shared in _shared(node))}
        return model

    def validate(self, model: GraphModule) -> None:
        """Let the quantizer validate the annotations that are left."""
        self.quantizer.validate(model)

    def prepare_obs_or_fq_callback(self, model: GraphModule, edge_or_node_to_obs_or_fq: Any) -> None:
        """Let the quantizer adjust its observers."""
        self.quantizer.prepare_obs_or_fq_callback(model, edge_or_node_to_obs_or_fq)


def _shared(node: Node) -> Iterator[Any]:
    annotation = node.meta.get(_ANNOTATION)
    specs = () if annotation is None else (*annotation.input_qspec_map.values(), annotation.output_qspec)
    yield from (spec.edge_or_node for spec in specs if isinstance(spec, SharedQuantizationSpec))


def _is_lost(place: Any) -> bool:
    """Return whether the place that an annotation shares the range of is not annotated any more."""
    source, reader = place if isinstance(place, tuple) else (place, None)
    annotation = (source if reader is None else reader).meta.get(_ANNOTATION)
    if annotation is None:
        return True
    return source not in annotation.input_qspec_map if reader is not None else annotation.output_qspec is None
