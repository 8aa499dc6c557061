"""Whether a plugin takes the inputs of a specification."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfq_plugins.errors import UsageError
from dfq_plugins.types import InputSpec

if TYPE_CHECKING:
    from dfq_plugins.types import Calibrator, DataGenerator, LearningGenerator, Specification


def accepted_spec(
    plugin: DataGenerator | LearningGenerator | Calibrator, who: object, spec: Specification
) -> InputSpec:
    """Return the specification to pass to a plugin, typed as the base class declares it.

    Args:
        plugin: the plugin's object.
        who: how messages name it.
        spec: the specification of the network.

    Raises:
        UsageError: it has several inputs, and the plugin only takes one.
    """
    if isinstance(spec, InputSpec) or plugin.several_inputs:
        return spec  # type: ignore[return-value]  # a plugin with `several_inputs` takes both
    raise UsageError(
        f"The {who} takes networks with one input, but this specification has {', '.join(spec.order)}. Use one that "
        "takes several, or wrap the network in a module that takes one of them and fixes the others."
    )
