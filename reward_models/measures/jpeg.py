"""How small a picture is as a JPEG file: an easy reward with an optimum that everyone can see."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from PIL import Image

from reward_models.base import KnownAnswer, Media, RewardError, RewardModel, Rewards, Size


@dataclass(frozen=True)
class Jpeg(RewardModel):
    """Score minus the size of the JPEG file in kilobytes (1000 bytes); a clip gets the mean over its frames.

    Attributes:
        quality: JPEG quality, 1 to 95.
        incompressible: Reward large files instead: the sign is reversed.

    Source: the compressibility tasks of DDPO (arXiv 2305.13301), section 5.
    """

    quality: int = 95
    incompressible: bool = False

    differentiable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 95:
            raise RewardError(f"jpeg: quality is from 1 to 95, got {self.quality}")

    def known_answers(self) -> tuple[KnownAnswer]:
        """Return a picture of one grey and a checkerboard, in the order of their scores."""
        squares = (torch.arange(32)[:, None] + torch.arange(32)) % 2
        pictures = [torch.full((32, 32), 0.5), squares.float()]
        pixels = torch.stack(pictures[::-1] if self.incompressible else pictures)[:, None, None].expand(
            -1, 1, 3, -1, -1
        )
        return (
            KnownAnswer("one grey takes fewer bytes than a checkerboard", Media(pixels), ("", ""), best_first=True),
        )

    def size(self) -> Size:
        """Nothing: there is no network."""
        return Size()

    def part_names(self) -> tuple[str, ...]:
        """None: a score is one number."""
        return ()

    def reads_prompts(self) -> bool:
        """No: it looks at the sample alone."""
        return False

    def load(self, *, device: torch.device) -> _JpegScorer:
        """Return the scorer; it works on the CPU whatever the device is."""
        return _JpegScorer(self)


@dataclass(frozen=True)
class _JpegScorer:
    model: Jpeg

    def __call__(self, *, media: Media, prompts: Sequence[str]) -> Rewards:
        """Score `media`; the prompts are not looked at."""
        levels = (media.pixels.detach().float() * 255).round().clamp(0, 255).byte()
        clips = levels.permute(0, 1, 3, 4, 2).cpu().numpy()
        sizes = [sum(self._kilobytes(frame) for frame in clip) / len(clip) for clip in clips]
        value = torch.tensor(sizes, dtype=torch.float32, device=media.pixels.device)
        return Rewards(value if self.model.incompressible else -value)

    def _kilobytes(self, frame: np.ndarray) -> float:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "JPEG", quality=self.model.quality)
        return file.tell() / 1000
