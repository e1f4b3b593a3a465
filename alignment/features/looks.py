"""What a picture looks like in plain numbers: light, colour, sharpness, and what optimisation likes to leave behind.

None of them is good or bad by itself. A reward that is hacked moves them first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from alignment.features.base import Extract, Extractor, per_clip

_LUMA = (0.299, 0.587, 0.114)
_EDGE = 0.02
"""How near to black or white a channel is cut off."""
_FINE = 0.25
"""Cycles per pixel from which on a frequency is fine detail; the finest is 0.5."""


@dataclass(frozen=True)
class Looks(Extractor):
    """Brightness, contrast, saturation, how much is cut off at black or white, and the spectrum."""

    distance: ClassVar[Literal["cosine", "euclidean"]] = "euclidean"
    names: ClassVar[tuple[str, ...]] = ("brightness", "contrast", "saturation", "cut off", "fine detail", "pattern")

    def load(self, *, device: torch.device) -> Extract:
        """Return it; it works where the pixels are."""
        return lambda pixels: per_clip(pixels, looks)


def looks(pictures: Tensor) -> Tensor:
    """Return the numbers of pictures `[n, 3, H, W]` in [0, 1], `[n, 6]` in the order of `Looks.names`.

    Brightness is the mean luma, contrast its standard deviation, saturation the mean of (most - least) of the three
    channels, "cut off" the share of channels at black or white. Of the spectrum, without its mean: the share of its
    power in fine detail, and the share of its strongest single frequency, which a lattice or a texture that repeats
    drives up.
    """
    x = pictures.float()
    luma = (x * torch.tensor(_LUMA, device=x.device)[:, None, None]).sum(1)
    spectrum = torch.fft.rfft2(luma - luma.mean((1, 2), keepdim=True)).abs() ** 2
    height, width = luma.shape[-2:]
    # Half of the plane is computed; all but its first and, for even widths, last columns stand for two.
    twice = torch.full((spectrum.shape[-1],), 2.0, device=x.device)
    twice[0] = 1.0
    if width % 2 == 0:
        twice[-1] = 1.0
    power = spectrum * twice
    frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]).to(x.device)
    total = power.sum((1, 2)).clamp(min=1e-12)
    columns = (
        luma.mean((1, 2)),
        luma.flatten(1).std(1, unbiased=False),
        (x.amax(1) - x.amin(1)).mean((1, 2)),
        ((x < _EDGE) | (x > 1 - _EDGE)).float().mean((1, 2, 3)),
        (power * (frequency >= _FINE)).sum((1, 2)) / total,
        power.flatten(1).amax(1) / total,
    )
    return torch.stack(columns, dim=1)
