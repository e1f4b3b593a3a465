"""A weighted sum of rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reward_models.base import (
    Loaded,
    Media,
    RewardError,
    RewardModel,
    Rewards,
    Scope,
    load_reward,
    require_reward_model,
)


@dataclass(frozen=True)
class WeightedPart:
    """One term of the sum.

    Attributes:
        reward: What to score with.
        weight: What its score is multiplied with. Negative makes it a penalty; 0 records it and does no more.
    """

    reward: RewardModel
    weight: float = 1.0


@dataclass(frozen=True)
class Weighted(RewardModel):
    """Score the sum of weight times score over the parts.

    A sample that a part with a weight could not score (NaN) has no score. The parts of the result are each part's own
    score, unweighted, under its name, and that part's own parts as "name/part".

    Attributes:
        parts: The terms, by a name of your own.
    """

    parts: Mapping[str, WeightedPart]

    def __post_init__(self) -> None:
        for part in self.parts.values():
            require_reward_model(part.reward)
        if not any(part.weight for part in self.parts.values()):
            raise RewardError(f"weighted: no part has a weight: {', '.join(self.parts) or 'there are no parts'}")

    @property
    def differentiable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]  # read-only
        """Whether gradients reach the pixels through every part that has a weight."""
        return all(part.reward.differentiable for part in self.parts.values() if part.weight)

    @property
    def scope(self) -> Scope:  # pyright: ignore[reportIncompatibleVariableOverride]  # read-only
        """Whether some part compares the samples of a group."""
        return "group" if any(part.reward.scope == "group" for part in self.parts.values()) else "sample"

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse what a part refuses."""
        for part in self.parts.values():
            part.reward.check(prompts)

    def load(self, *, device: torch.device) -> _WeightedScorer:
        """Load every part on `device`."""
        weights = {name: part.weight for name, part in self.parts.items()}
        return _WeightedScorer(
            weights, {name: load_reward(part.reward, device=device) for name, part in self.parts.items()}
        )


@dataclass(frozen=True)
class _WeightedScorer:
    weights: Mapping[str, float]
    scorers: Mapping[str, Loaded]

    @property
    def inner(self) -> tuple[Loaded, ...]:
        """The parts."""
        return tuple(self.scorers.values())

    def __call__(self, *, media: Media, prompts: Sequence[str], group: Tensor | None = None) -> Rewards:
        """Score with every part and add up."""
        value = torch.zeros(len(media), dtype=torch.float32, device=media.pixels.device)
        parts = {}
        for name, scorer in self.scorers.items():
            rewards = scorer(media=media, prompts=prompts, group=group)
            # Left out rather than multiplied: 0 times a missing score would still be missing.
            if self.weights[name]:
                value = value + self.weights[name] * rewards.value.to(value.device)
            parts[name] = rewards.value
            parts.update({f"{name}/{sub}": score for sub, score in rewards.parts.items()})
        return Rewards(value, parts)
