"""How little neighbouring frames of a clip differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from reward_models.base import KnownAnswer, Media, RewardModel, Rewards
from reward_models.loading.inputs import check_clips

_NAME = "flicker"
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Flicker(RewardModel):
    """Score 1 minus the mean absolute difference of neighbouring frames, in [0, 1]: 1 where nothing changes.

    Motion counts as flicker: it is meant for clips that should stand still, and alone it teaches to. The prompt is not
    read.

    Source: the temporal flickering of VBench (arXiv 2311.17982), on pixels as they are.
    """

    differentiable: ClassVar[bool] = True

    def known_answers(self) -> Sequence[KnownAnswer]:
        """Return a clip that stands still, and one that goes from black to white."""
        still = torch.full((2, 3, 8, 8), 0.5)
        media = Media(torch.stack([still, torch.stack([still[0] * 0, still[0] * 2])]))
        bands = ((1 - _ROUNDING, 1 + _ROUNDING), (-_ROUNDING, _ROUNDING))
        return (KnownAnswer("a clip that stands still does not flicker", media, ("", ""), bands),)

    def part_names(self) -> tuple[str, ...]:
        """None: a score is one number."""
        return ()

    def reads_prompts(self) -> bool:
        """No: it looks at the sample alone."""
        return False

    def load(self, *, device: torch.device) -> _FlickerScorer:
        """Return the scorer; it works where the pixels are."""
        return _FlickerScorer()


@dataclass(frozen=True)
class _FlickerScorer:
    def __call__(self, *, media: Media, prompts: Sequence[str]) -> Rewards:
        """Score clips; gradients reach their pixels.

        Raises:
            RewardError: If these are pictures.
        """
        check_clips(_NAME, media, prompts)
        return Rewards(1 - media.pixels.float().diff(dim=1).abs().mean((1, 2, 3, 4)))
