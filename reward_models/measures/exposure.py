"""How well a picture is exposed, measured without any network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from reward_models.base import KnownAnswer, Media, RewardError, RewardModel, Rewards
from reward_models.loading.inputs import check_media, frames, per_clip

_NAME = "exposure"
_SIDE = 8
_ROUNDING = 1e-4


@dataclass(frozen=True)
class Exposure(RewardModel):
    """Score how near to middle grey the channels of each pixel are, in (0, 1]; a clip gets the mean over its frames.

    exp(-(c - 1/2)^2 / (2 width^2)), multiplied over the three channels c of a pixel, averaged over pixels. Blown
    highlights and blocked shadows cost most; saturated colours cost too. The prompt is not read.

    Attributes:
        width: Of the bell around middle grey.

    Source: well-exposedness of exposure fusion (Mertens et al., Pacific Graphics 2007), section 3.1.
    """

    width: float = 0.2

    differentiable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise RewardError(f"{_NAME}: width is positive, got {self.width}")

    def known_answers(self) -> Sequence[KnownAnswer]:
        """Return grey, dark grey and black."""
        levels = torch.tensor([0.5, 0.25, 0.0]).view(-1, 1, 1, 1, 1).expand(-1, 1, 3, _SIDE, _SIDE)
        media = Media(levels)
        return (
            KnownAnswer(
                "grey is exposed better than dark grey, and that than black", media, ("",) * 3, best_first=True
            ),
            KnownAnswer("middle grey scores 1", media[:1], ("",), ((1 - _ROUNDING, 1 + _ROUNDING),)),
        )

    def part_names(self) -> tuple[str, ...]:
        """None: a score is one number."""
        return ()

    def reads_prompts(self) -> bool:
        """No: it looks at the sample alone."""
        return False

    def load(self, *, device: torch.device) -> _ExposureScorer:
        """Return the scorer; it works where the pixels are."""
        return _ExposureScorer(self.width)


@dataclass(frozen=True)
class _ExposureScorer:
    width: float

    def __call__(self, *, media: Media, prompts: Sequence[str]) -> Rewards:
        """Score `media`; gradients reach its pixels."""
        check_media(_NAME, media, prompts)
        away = ((frames(media) - 0.5) / self.width).square().sum(1)
        return Rewards(per_clip(torch.exp(-away / 2).mean((1, 2)), media))
