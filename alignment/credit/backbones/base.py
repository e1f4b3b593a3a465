"""Frozen networks that see a picture patch by patch."""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Backbone(Protocol):
    """A light, frozen description of a network that sees patches; `load` makes the heavy object.

    Attributes:
        home: Where `type:` in a config finds implementations.
    """

    home: ClassVar[str] = "alignment.credit.backbones"

    def load(self, *, device: torch.device) -> Tokens:
        """Return the loaded network on `device`."""
        ...


class Tokens(Protocol):
    """Sees pictures. The tokens of a batch are the tokens of its rows."""

    def __call__(self, pictures: Tensor) -> Tensor:
        """Return one vector a patch, `[n, h, w, d]` float32, of pictures `[n, 3, H, W]` in [0, 1] on its device."""
        ...
