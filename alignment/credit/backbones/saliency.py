"""Colour and contrast of patches: what an eye is drawn to, without a network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from alignment.credit.backbones.base import Backbone
from alignment.errors import ConfigError


@dataclass(frozen=True)
class Saliency(Backbone):
    """Seven numbers per patch: its colour, how that differs from its surroundings', and how its brightness spreads.

    Needs no checkpoint: for pictures with a plain background, and for trying things out. What it takes for structure is
    what stands out in colour, whatever it means.

    Attributes:
        patch: Pixels along a patch's side; smaller pictures are one patch.

    Source: centre and surround, as in Itti, Koch and Niebur, A model of saliency-based visual attention (1998), reduced
        to one scale.
    """

    patch: int = 4

    def __post_init__(self) -> None:
        if self.patch < 1:
            raise ConfigError(f"backbone.patch must be >= 1, got {self.patch}")

    def load(self, *, device: torch.device) -> Contrast:
        """Return the computation; there is nothing to load."""
        return Contrast(self.patch)


@dataclass(frozen=True)
class Contrast:
    """Colour and contrast of patches."""

    patch: int

    def __call__(self, pictures: Tensor) -> Tensor:
        """Return `[n, h, w, 7]`; the last patches of a side are wider where it does not divide."""
        pictures = pictures.double()  # or the squares below would not cancel where nothing differs
        height, width = (max(1, side // self.patch) for side in pictures.shape[-2:])
        colour = adaptive_avg_pool2d(pictures, (height, width))
        around = _mean_of_neighbours(colour)
        brightness = pictures.mean(dim=1, keepdim=True)
        spread = adaptive_avg_pool2d(brightness.square(), (height, width))
        spread = (spread - adaptive_avg_pool2d(brightness, (height, width)).square()).clamp(min=0).sqrt()
        return torch.cat([colour, colour - around, spread], dim=1).permute(0, 2, 3, 1).float()


def _mean_of_neighbours(x: Tensor) -> Tensor:
    """Return the mean of each 3 x 3 neighbourhood that lies inside."""
    ones = torch.nn.functional.pad(torch.ones_like(x[:1, :1]), (1, 1, 1, 1))
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    pool = torch.nn.functional.avg_pool2d
    return pool(padded, 3, stride=1) / pool(ones, 3, stride=1)
