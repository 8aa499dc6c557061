"""The marker of networks that a file computes. Imports no framework, so that it costs nothing to ask for it."""

from __future__ import annotations

from torch import nn


class FileNetwork(nn.Module):
    """A network without layers or gradients that torch knows: a file computes it.

    Attributes:
        name: name of the file.
        program: its content.
    """

    name: str
    program: bytes
