"""Lottery tickets: the weights of a network to keep, with the values that they had before any training.

Source: Frankle and Carbin 2019, "The Lottery Ticket Hypothesis"; trained without data as in Zhu et al. 2020 (arXiv
2010.07334): the masks come from a trained network, and the ticket learns a teacher's outputs.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
from safetensors import SafetensorError

from dfq_plugins.errors import DataError, ModelError
from dfq_plugins.network.digest import model_digest
from dfq_plugins.network.masks import attach_masks, masks_of
from dfq_plugins.private_copy import private_copy
from dfq_plugins.pruning.magnitude import prune_weights, require_weights
from dfq_plugins.storage.canonical_json import short_digest
from dfq_plugins.storage.files import create_folder, write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

TICKET_FILE, TENSORS_FILE = "ticket.json", "ticket.safetensors"
FORMAT_VERSION = 1
_MASK, _INITIAL = "mask/", "initial/"


@dataclass(frozen=True, eq=False)
class Ticket:
    """A lottery ticket.

    Args:
        masks: True where a weight is kept, by weight name.
        initial: state dictionary from before any training.
        architecture: digest of the network's structure.
    """

    masks: Mapping[str, Tensor]
    initial: Mapping[str, Tensor]
    architecture: str

    @property
    def sparsity(self) -> float:
        """Share of the masked layers' weights that are zero."""
        total = sum(mask.numel() for mask in self.masks.values())
        return 1 - sum(int(mask.sum()) for mask in self.masks.values()) / total

    @classmethod
    def find(cls, trained: nn.Module, initial: Mapping[str, Tensor] | nn.Module, sparsity: float) -> Ticket:
        """Return the ticket of a trained network's largest weights.

        Args:
            trained: network to compute the masks from; not changed.
            initial: the same network before its training, or its state dictionary.
            sparsity: share of the weights of convolutions and linear layers to mask.

        Raises:
            UsageError: a layer would lose all its weights.
            ModelError: the initial values belong to another network.
        """
        masked = private_copy(trained)
        prune_weights(masked, sparsity)
        return cls.from_masks(trained, masks_of(masked), initial)

    @classmethod
    def from_masks(
        cls, model: nn.Module, masks: Mapping[str, Tensor], initial: Mapping[str, Tensor] | nn.Module
    ) -> Ticket:
        """Return a ticket with masks found in another way, such as over several rounds of training.

        Raises:
            UsageError: a mask leaves a layer without weights.
            ModelError: masks or initial values belong to another network.
        """
        values = initial if not hasattr(initial, "state_dict") else initial.state_dict()
        known, weights = model.state_dict(), dict(model.named_parameters())
        for what, given, wanted in (("initial values", values, known), ("masks", masks, weights)):
            wrong = [name for name in given if name not in wanted or given[name].shape != wanted[name].shape]
            wrong += [name for name in wanted if what == "initial values" and name not in given]
            if wrong:
                raise ModelError(
                    f"The {what} of a ticket must belong to the given network, but {wrong[0]!r} does not match "
                    f"{type(model).__name__}. Give those of the same network."
                )
        require_weights(masks, "The ticket")
        kept = {name: mask.detach().cpu().bool().clone() for name, mask in masks.items()}
        first = {name: value.detach().cpu().clone().contiguous() for name, value in values.items()}
        return cls(kept, first, model_digest(model, weights=False))

    def rewind(self, model: nn.Module) -> nn.Module:
        """Return a copy of a network with the ticket's initial weights, and its masks attached.

        The masks stay active during training, until `torch.nn.utils.prune.remove`.

        Args:
            model: network of the same architecture, with any weights; not changed.

        Raises:
            DataError: the ticket belongs to another architecture.
        """
        found = model_digest(model, weights=False)
        if found != self.architecture:
            raise DataError(
                f"The ticket belongs to another model: its architecture has the digest "
                f"{short_digest(self.architecture)}, and that of {type(model).__name__} is {short_digest(found)}. "
                "Give the network that the ticket was made from."
            )
        network = private_copy(model)
        network.load_state_dict(dict(self.initial))
        attach_masks(network, self.masks)
        return network

    def save(self, folder: Path | str) -> Path:
        """Write the ticket into a folder, and return the path of its JSON file.

        Raises:
            DataError: the folder cannot be written.
        """
        folder = Path(folder)
        create_folder(folder)
        tensors = {f"{_MASK}{name}": mask for name, mask in self.masks.items()}
        data = safetensors.torch.save(tensors | {f"{_INITIAL}{name}": value for name, value in self.initial.items()})
        about = {
            "format_version": FORMAT_VERSION,
            "architecture": self.architecture,
            "sparsity": self.sparsity,
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        write_atomically(folder / TENSORS_FILE, data)
        write_atomically(folder / TICKET_FILE, f"{json.dumps(about, indent=1, sort_keys=True)}\n".encode())
        return folder / TICKET_FILE

    @classmethod
    def load(cls, folder: Path | str) -> Ticket:
        """Return the ticket in a folder.

        Raises:
            DataError: there is no ticket, it is damaged, or it was written by a newer version.
        """
        folder = Path(folder)
        try:
            about = json.loads((folder / TICKET_FILE).read_bytes())
            data = (folder / TENSORS_FILE).read_bytes()
            if int(about["format_version"]) > FORMAT_VERSION:
                raise ValueError(f"format version {about['format_version']}; install a newer dfq-plugins")  # noqa: TRY301
            if hashlib.sha256(data).hexdigest() != about["sha256"]:
                raise ValueError("its tensors have changed since they were written")  # noqa: TRY301
            tensors = safetensors.torch.load(data)
            return cls(_part(tensors, _MASK), _part(tensors, _INITIAL), str(about["architecture"]))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise DataError(
                f"{folder} does not hold a valid ticket: {type(error).__name__}, {error}. Give a folder that "
                "Ticket.save or dfq prune --rewind-to wrote."
            ) from error


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
