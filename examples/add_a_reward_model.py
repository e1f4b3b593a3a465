"""A reward with fields of its own is one dataclass; `add_a_reward.py` shows the shorter way, a plain function.

visalign train quickstart name=warm \
        'source.reward={type: "examples.add_a_reward_model:Warmth", gain: 2.0}' evaluation.prompts=null
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from reward_models.base import KnownAnswer, Media, RewardModel, Rewards


@dataclass(frozen=True)
class Warmth(RewardModel):
    """Score how much more red than blue a picture has.

    Attributes:
        gain: What the difference is multiplied with.
    """

    gain: float = 1.0
    differentiable: ClassVar[bool] = True

    def known_answers(self) -> tuple[KnownAnswer]:
        """Return a red picture and a blue one: `visalign doctor` and a reward server ask before they trust."""
        pixels = torch.eye(3)[[0, 2], None, :, None, None].expand(-1, 1, -1, 8, 8)
        return (KnownAnswer("red is warmer than blue", Media(pixels), ("", ""), best_first=self.gain > 0),)

    def load(self, *, device: torch.device) -> _Scorer:
        """Return the scorer; a network would be read here, onto `device`."""
        return _Scorer(self.gain)


@dataclass(frozen=True)
class _Scorer:
    gain: float

    def __call__(self, *, media: Media, prompts: Sequence[str]) -> Rewards:
        """Score pixels `[B, F, 3, H, W]` in [0, 1]; one float32 a sample, NaN for one that cannot be judged."""
        means = media.pixels.float().mean(dim=(1, 3, 4))
        return Rewards(self.gain * (means[:, 0] - means[:, 2]))
