"""Where in a sample credit belongs: maps over the latent, made from pixels."""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from alignment.policy.latent_grid import LatentGrid


@runtime_checkable
class Structure(Protocol):
    """A light, frozen description of how credit is spread over a latent; `load` makes the heavy object.

    Attributes:
        home: Where `type:` in a config finds implementations.
    """

    home: ClassVar[str] = "alignment.credit.structures"

    def load(self, *, device: torch.device) -> Allocator:
        """Return the loaded object on `device`."""
        ...


class Allocator(Protocol):
    """Makes maps. The map of a batch is the maps of its rows."""

    def __call__(self, pixels: Tensor, grid: LatentGrid) -> Tensor:
        """Return what each position's credit is multiplied with, `[n, frames, height, width]` float32 on the CPU, >= 0.

        Args:
            pixels: `[n, F, 3, H, W]` in [0, 1].
            grid: The positions.
        """
        ...
