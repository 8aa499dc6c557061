"""Finds a network's weights in a checkpoint: under which key, behind which prefix, and next to what else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

if TYPE_CHECKING:
    from collections.abc import Iterator

COUNTERS = ("num_batches_tracked", "n_averaged", "total_ops", "total_params")
"""Entries that do not affect the outputs: torch's counters, and those that FLOP counters leave in a network."""

USUAL_KEYS = ("state_dict", "model_state_dict", "model", "net", "network", "weights")
"""Where training scripts store the weights, the preferred ones first."""

AVERAGES = ("ema", "swa", "average", "shadow")
"""Parts of the names under which training scripts store averaged weights."""

_WRAPPERS = {"module", "_orig_mod"}
_DEPTH = 3


@dataclass(frozen=True)
class Weights:
    """Weights in a checkpoint that have all names of a network, or the most.

    Args:
        keys: the keys that lead to them.
        prefix: what was removed from the beginning of their names.
        state: the state dict, with the network's names.
        left_out: entries of the checkpoint that are not part of it.
        fits: whether all names and shapes are those of the network.
    """

    keys: tuple[str, ...]
    prefix: str
    state: Mapping[str, Tensor]
    left_out: tuple[str, ...]
    fits: bool

    @property
    def place(self) -> str:
        """The keys and the prefix, as text; empty for a bare state dict."""
        parts = [f"[{key!r}]" for key in self.keys]
        return "".join(parts) + (f"{', ' * bool(parts)}names behind {self.prefix!r}" if self.prefix else "")

    @property
    def rank(self) -> tuple[int, ...]:
        """Sorts candidates: trained before averaged weights, usual before other keys, then the fewest left out."""
        names = " ".join((*self.keys, self.prefix)).lower()
        usual = next((place for place, key in enumerate(USUAL_KEYS) if key in self.keys), len(USUAL_KEYS))
        return any(average in names for average in AVERAGES), usual if self.keys else 0, len(self.left_out)


def find_weights(checkpoint: Any, model: nn.Module) -> list[Weights]:
    """Return the weights in a checkpoint that fit a network, the best first; if none fit, the most similar ones.

    Names are compared without the wrappers of DataParallel and `torch.compile`, wherever they occur.

    Args:
        checkpoint: what the file holds.
        model: the network.

    Returns:
        At least one entry, unless the checkpoint has no tensors with names.
    """
    expected = model.state_dict()
    names = {_plain(name): name for name in expected}
    if len(names) < len(expected):  # two names differ only by a wrapper
        names = {name: name for name in expected}
    found = [
        _chosen(keys, prefix, state, names, expected, siblings)
        for keys, state, siblings in _state_dicts(checkpoint)
        for prefix in _prefixes(state, names)
    ]
    fitting = sorted((weights for weights in found if weights.fits), key=lambda weights: weights.rank)
    return fitting or sorted(found, key=lambda weights: -len(expected.keys() & weights.state.keys()))[:1]


def _state_dicts(
    value: Any, keys: tuple[str, ...] = (), siblings: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor], tuple[str, ...]]]:
    """Yield every mapping that holds tensors: its keys, the tensors, and the names of what is next to it."""
    if not isinstance(value, Mapping) or len(keys) > _DEPTH:
        return
    tensors = {key: item for key, item in value.items() if isinstance(key, str) and isinstance(item, Tensor)}
    if tensors:
        yield keys, tensors, (*siblings, *(str(key) for key in value if key not in tensors))
    for key, item in value.items():
        if isinstance(key, str):
            others = (str(other) for other in value if other != key and other not in tensors)
            yield from _state_dicts(item, (*keys, key), (*siblings, *others, *tensors))


def _plain(name: str) -> str:
    """Return a name without wrappers.

    >>> _plain("module.features._orig_mod.0.weight")
    'features.0.weight'
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _prefixes(state: Mapping[str, Tensor], names: Mapping[str, str]) -> list[str]:
    """Return the prefixes behind which at least one name of the network occurs, and the empty one."""
    found = {"": None}
    for name in state:
        parts = name.split(".")
        for start in range(1, len(parts)):
            if _plain(".".join(parts[start:])) in names and parts[start] not in _WRAPPERS:
                found[".".join(parts[:start]) + "."] = None
    return [prefix for prefix in found if not prefix or _plain(prefix.removesuffix("."))] or [""]


def _chosen(
    keys: tuple[str, ...],
    prefix: str,
    state: Mapping[str, Tensor],
    names: Mapping[str, str],
    expected: Mapping[str, Tensor],
    siblings: tuple[str, ...],
) -> Weights:
    inside = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    plain = {name if name in expected else names.get(_plain(name), name): value for name, value in inside.items()}
    counters = {name for name in plain if name not in expected and name.endswith(COUNTERS)}
    outside = (name for name in state if not name.startswith(prefix))
    taken = {name: value for name, value in plain.items() if name not in counters}
    missing = {name for name in expected if name not in taken and not name.endswith(COUNTERS)}
    same = all(name in expected and _fits(expected[name], value) for name, value in taken.items())
    return Weights(
        keys,
        _shown_prefix(prefix, inside, expected),
        taken,
        (*siblings, *outside, *sorted(counters)),
        same and not missing,
    )


def _fits(wanted: Tensor, given: Tensor) -> bool:
    return is_lazy(wanted) or wanted.shape == given.shape


def _shown_prefix(prefix: str, inside: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Return the prefix with the wrappers behind it that the network's names do not have."""
    wrappers = ""
    while (first := next(iter(inside), "")) not in expected and (part := first.partition(".")[0]) in _WRAPPERS:
        wrappers += f"{part}."
        inside = {name.removeprefix(f"{part}."): value for name, value in inside.items()}
    return prefix + wrappers
