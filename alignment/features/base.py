"""What an extractor is: numbers that stand for a picture, for distances between pictures and between sets of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

Extract = Callable[[Tensor], Tensor]
"""Takes pictures or clips `[B, F, 3, H, W]` in [0, 1] and returns `[B, d]` float32; a row depends on its own pixels."""

_TOGETHER = 64
"""Frames that an extractor sees in one call."""


@runtime_checkable
class Extractor(Protocol):
    """A light, frozen description of what makes features; `load` makes the heavy object.

    The file `alignment/features/NAME.py` holds the class that configurations and the command line call NAME.

    Attributes:
        distance: How far two pictures are apart: 1 - cosine, or the root of the mean squared difference.
        names: Of the numbers, where each means something by itself; empty where only all of them together do.
        kernel: The maximum mean discrepancy that is usual with these features: "cubic" (KID), "gaussian" (CMMD).
        clips: Whether it looks at clips as such; other extractors take the mean over frames.
    """

    home: ClassVar[str] = "alignment.features"
    distance: ClassVar[Literal["cosine", "euclidean"]] = "cosine"
    names: ClassVar[tuple[str, ...]] = ()
    kernel: ClassVar[Literal["cubic", "gaussian"]] = "cubic"
    clips: ClassVar[bool] = False

    def check(self) -> None:
        """Look for its weights, before pictures are made for it; there are none by default.

        Raises:
            ConfigError: If they are missing, in a line with their licence and where they are to be had.
        """

    def load(self, *, device: torch.device) -> Extract:
        """Return the loaded extractor.

        Raises:
            ConfigError: If its weights are missing or damaged.
        """
        ...


def per_clip(pixels: Tensor, extract: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the mean over frames of the features of pictures, of so many at once as memory has room for.

    Args:
        pixels: `[B, F, 3, H, W]`.
        extract: From pictures `[n, 3, H, W]` to `[n, d]`.
    """
    found = torch.cat([extract(part) for part in pixels.flatten(0, 1).split(_TOGETHER)])
    return found.unflatten(0, pixels.shape[:2]).float().mean(1)


def apart(x: np.ndarray, y: np.ndarray, distance: Literal["cosine", "euclidean"]) -> np.ndarray:
    """Return the distance of each row of one set from the same row of the other, `[n]`."""
    a, b = x.astype(np.float64), y.astype(np.float64)
    if distance == "euclidean":
        return np.sqrt(((a - b) ** 2).mean(1))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return 1 - (a * b).sum(1) / norms.clip(1e-12)
