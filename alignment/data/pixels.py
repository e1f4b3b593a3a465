"""What a pipeline is asked for, and what it hands back: pixels in several layouts and ranges, as clips in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alignment.errors import PipelineError

CHANNELS = (3, 4, 1)
"""Of pixels: colours, colours with alpha, grey; where a shape can be read in several ways, the first of these."""
PLACES = {4: (1, 3), 5: (2, 1, 4)}
"""Axis of the channels by the number of axes, most usual first."""
SAME = 1e-2
"""Of a pixel: what a conversion in bfloat16 rounds."""
SLIGHT = 0.1
"""How far resampling and rounding take a pixel out of [0, 1]."""


@dataclass
class Shown:
    """How a pipeline is asked for samples, and what it returns; found out on its first call.

    Attributes:
        unseen: The `output_type` of a call whose pixels are not used: "latent", or "pt" where that is unknown.
        seen: The `output_type` of all others.
        signed: Whether pixels come in [-1, 1]; null until that is known.
    """

    unseen: str = "latent"
    seen: str = "pt"
    signed: bool | None = None

    def look_always(self) -> None:
        """Ask for pixels in every call, for a pipeline that has no other output."""
        self.unseen = self.seen

    def clips(self, images: Any) -> Tensor:
        """Return what a pipeline handed back as clips `[n, F, 3, H, W]` in [0, 1], or as they are before `settle`."""
        clips = as_clips(images)
        return clips if self.signed is None else in_colour((clips / 2 + 0.5 if self.signed else clips).clamp(0, 1))

    def settle(self, pipe: Any, look: Callable[[], Tensor]) -> Tensor:
        """Find out in which range pixels come: where some are outside [0, 1], the numpy output shows what users see.

        Args:
            pipe: The pipeline.
            look: Makes a sample.

        Returns:
            That sample.

        Raises:
            PipelineError: If no range explains the pixels.
        """
        self.signed = None
        made = look().float()
        outside = torch.maximum(-made.amin(), made.amax() - 1).item()
        if outside > 0:
            self.seen = "np"
            told = look().float()
            self.seen = "pt"
            self.signed = _same((made / 2 + 0.5).clamp(0, 1), told)
            if not self.signed and (outside > SLIGHT or not _same(made.clamp(0, 1), told.clamp(0, 1))):
                raise PipelineError(
                    f"policy.pipeline: {type(pipe).__name__} hands back numbers from {made.amin():.2g} to "
                    f"{made.amax():.2g} where pixels in [0, 1] are wanted: it makes something other than pictures, and "
                    "that no reward can look at"
                )
        self.signed = bool(self.signed)
        return made


def as_clips(images: Any) -> Tensor:
    """Return pictures or clips, as one array or one per row, channels anywhere, as `[n, F, C, H, W]` with C 1, 3 or 4.

    Raises:
        PipelineError: If they are neither.
    """
    rows = images if isinstance(images, list | np.ndarray) else []
    if len(rows) and all(isinstance(row, Tensor | np.ndarray) for row in rows):
        images = torch.stack([torch.as_tensor(one) for one in rows])
    shape = images.shape if isinstance(images, Tensor) else torch.Size()
    axes = PLACES.get(len(shape), ())
    place = next((axis for channels in CHANNELS for axis in axes if shape[axis] == channels), None)
    if place is None or not isinstance(images, Tensor):
        got = list(shape) if isinstance(images, Tensor) else type(images).__name__
        raise PipelineError(
            f"policy.pipeline: the pipeline hands back {got} where pictures [n, 3, H, W] or clips [n, F, 3, H, W] are "
            "wanted: it makes something that cannot be trained on here, or does not know output_type 'pt'"
        )
    return images.movedim(place, 1)[:, None] if len(shape) == 4 else images.movedim(place, 2)


def in_colour(clips: Tensor) -> Tensor:
    """Return clips `[n, F, C, H, W]` in [0, 1] as colours: grey in all three, what is transparent laid on white."""
    if clips.shape[2] == 1:
        return clips.repeat(1, 1, 3, 1, 1)
    if clips.shape[2] == 4:
        colour, alpha = clips.split([3, 1], dim=2)
        return colour * alpha + (1 - alpha)
    return clips


def _same(made: Tensor, told: Tensor) -> bool:
    return made.shape == told.shape and bool((made.cpu() - told.cpu()).abs().max() <= SAME)
