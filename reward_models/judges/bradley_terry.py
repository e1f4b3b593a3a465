"""The better score wins: a pairwise judge made of any reward that scores a sample by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reward_models.base import Loaded, Media, PairwiseJudge, RewardError, RewardModel, load_reward, require_reward_model


@dataclass(frozen=True)
class BradleyTerry(PairwiseJudge):
    """Prefer the first of two with probability sigmoid((its score - the other's) / temperature).

    Attributes:
        reward: What scores each of them.
        temperature: Difference of scores that makes the odds e to 1, more than 0.

    Source: Bradley and Terry (1952), as reward models are trained, InstructGPT (arXiv 2203.02155), eq. 1.
    """

    reward: RewardModel
    temperature: float = 1.0

    def __post_init__(self) -> None:
        require_reward_model(self.reward)
        if self.reward.scope != "sample":
            raise RewardError(f"bradley_terry: {self.reward} compares already; give a reward that scores one sample")
        if not self.temperature > 0:
            raise RewardError(f"bradley_terry: temperature has to be more than 0, got {self.temperature}")

    def __str__(self) -> str:
        """Return the reward's name too."""
        return f"{self.reward} (Bradley-Terry)"

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse what the reward refuses."""
        self.reward.check(prompts)

    def waits(self) -> bool:
        """Return whether the reward does."""
        return self.reward.waits()

    def load(self, *, device: torch.device) -> _BradleyTerryComparer:
        """Load the reward."""
        return _BradleyTerryComparer(load_reward(self.reward, device=device), self.temperature)


@dataclass(frozen=True)
class _BradleyTerryComparer:
    scorer: Loaded
    temperature: float

    @property
    def inner(self) -> tuple[Loaded]:
        """What scores."""
        return (self.scorer,)

    def __call__(self, *, first: Media, second: Media, prompts: Sequence[str]) -> Tensor:
        """Return the probability that `first` is better, `[B]`."""
        one, other = (self.scorer(media=media, prompts=prompts).value for media in (first, second))
        return ((one - other) / self.temperature).sigmoid()
