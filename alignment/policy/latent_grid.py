"""Where the numbers of a latent state lie in the picture or clip that it becomes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alignment.errors import PipelineError

TEMPORAL = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio")
"""Where pipelines keep how many frames one latent frame holds."""

_LAYOUTS = {"CogVideoX": "tchw", "ConsisID": "tchw", "StableVideoDiffusion": "tchw", "Kandinsky5": "thwc"}
"""Axes of a clip's state, by how the name of the pipeline's class begins; `cthw` for all others."""


@dataclass(frozen=True)
class LatentGrid:
    """The positions of a state: what one vector of its channels stands for.

    A pipeline that packs patches of latents into tokens has one position per token.

    Attributes:
        frames: Positions in time; 1 for pictures.
        height: Positions from top to bottom.
        width: Positions from left to right.
        shape: Of a map that broadcasts against a state: 1 along its channels.
    """

    frames: int
    height: int
    width: int
    shape: tuple[int, ...]

    def lay(self, maps: Tensor) -> Tensor:
        """Return maps `[n, frames, height, width]` in the shape that broadcasts against states, `[n, *shape]`."""
        return maps.reshape(len(maps), *self.shape)


def latent_grid(pipe: Any, state: torch.Size, pixels: torch.Size) -> LatentGrid:
    """Return the positions of a pipeline's states.

    States are `[channels, height, width]`, `[channels, frames, height, width]` (or as `_LAYOUTS` says), or
    `[tokens, channels]` with the tokens in reading order, frame by frame.

    Args:
        pipe: The pipeline.
        state: Shape of a row's state.
        pixels: Shape of what it makes, `[..., F, 3, H, W]`.

    Raises:
        PipelineError: If the state is not a grid, for instance when several streams are denoised together.
    """
    frames, height, width = pixels[-4], pixels[-2], pixels[-1]
    name = type(pipe).__name__
    if frames == height == width == 1:  # one pixel has one position, whatever it is made of
        return LatentGrid(1, 1, 1, (1,) * len(state))
    if len(state) == 3:
        return LatentGrid(1, state[1], state[2], (1, state[1], state[2]))
    if len(state) == 4:
        layout = next((axes for start, axes in _LAYOUTS.items() if name.startswith(start)), "cthw")
        t, h, w = (state[layout.index(axis)] for axis in "thw")
        return LatentGrid(t, h, w, tuple(1 if axis == "c" else n for axis, n in zip(layout, state, strict=True)))
    if len(state) == 2:
        ratio = next((getattr(pipe, name) for name in TEMPORAL if hasattr(pipe, name)), 1)
        t = 1 if frames == 1 else (frames - 1) // ratio + 1
        h = _rows(state[0] // t, height / width)
        if state[0] % t == 0 and h is not None:
            return LatentGrid(t, h, state[0] // t // h, (state[0], 1))
    raise PipelineError(
        f"source.structure: states of {name} are {tuple(state)}, its samples {frames} x {height} x {width} pixels; "
        "credit can only be spread over states that are a grid of positions. Leave source.structure out"
    )


def _rows(tokens: int, aspect: float) -> int | None:
    """Return the number of rows of a picture of this height / width, cut into so many squares; None if it cannot be."""
    fitting = [h for h in range(1, tokens + 1) if tokens % h == 0 and abs(h - aspect * tokens / h) < max(aspect, 1.0)]
    return min(fitting, key=lambda h: abs(math.log(h * h / (aspect * tokens))), default=None)
