"""Centred within each group, scaled by the spread of the whole step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from alignment.credit.advantages.base import Advantage
from alignment.credit.advantages.group_statistics import credit
from reward_models.base import Rewards


@dataclass(frozen=True)
class BatchNorm(Advantage):
    """A = (r - mean of its group) / (std of all rewards of the step + delta).

    A group whose scores nearly tie keeps small advantages; per-group z-scoring would blow its noise up to unit size.
    The std is that of raw rewards, so differences between prompts are part of it.

    Attributes:
        delta: Added to the std.
        limit: Largest |A|.

    Source: Flow-GRPO (arXiv 2505.05470), code (`global_std`): numpy's biased std and delta 1e-4. The paper has the std
    of the group, which is `group_norm`.
    """

    delta: float = 1e-4
    limit: float = 5.0

    def __call__(self, rewards: Rewards, group: Tensor) -> Tensor:
        """Return `[B]` float32."""
        scored = rewards.value[~rewards.value.isnan()].double()
        std = scored.std(correction=0) if len(scored) else scored.sum()
        return credit(rewards.value, group, std + self.delta, self.limit)
