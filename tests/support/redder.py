"""A reward that looks at what a picture was made from, for the tests of edits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from reward_models.base import Media, RewardModel, Rewards

ALONE = -1.0
"""The score of a picture that was made from none."""


@dataclass(frozen=True)
class Redder(RewardModel):
    """Score how much redder a picture is than the one it was made from."""

    differentiable: ClassVar[bool] = False

    def load(self, *, device: torch.device) -> Redder:
        """Return itself."""
        return self

    def __call__(self, *, media: Media, prompts: Sequence[str]) -> Rewards:
        """Return the mean over pixels, and `ALONE` for every row where there is nothing to compare with."""
        if media.source is None:
            return Rewards(torch.full((len(prompts),), ALONE))
        return Rewards((media.pixels - media.source.pixels)[:, :, 0].flatten(1).mean(1))
