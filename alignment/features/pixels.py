"""The picture itself, made small: features without weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from alignment.features.base import Extract, Extractor, per_clip


@dataclass(frozen=True)
class Pixels(Extractor):
    """Colours averaged over a coarse grid: what is where, roughly. It sees colours and places, no things.

    Attributes:
        side: Cells of the grid each way.
    """

    side: int = 8

    distance: ClassVar[Literal["cosine", "euclidean"]] = "euclidean"

    def load(self, *, device: torch.device) -> Extract:
        """Return it; it works where the pixels are."""

        def pool(pictures: Tensor) -> Tensor:
            return adaptive_avg_pool2d(pictures.float(), self.side).flatten(1)

        return lambda pixels: per_clip(pixels, pool)
