"""A weighted sum of each reward's own credit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from alignment.advantages._parts import parts_of, weighted, z_score
from alignment.advantages.base import Advantage
from reward_models.base import Rewards


@dataclass(frozen=True)
class Weighted(Advantage):
    """A = sum of w_k z_k, z_k the z-score of part k within the group.

    Rewards that agree add up to larger credit than one alone has, rewards that disagree cancel; `gdpo` brings the sum
    back to unit spread.

    Attributes:
        weights: Weight of each part of the reward, by its name; empty takes every part once, or the reward itself where
            it has none.
        delta: Added to the std of each part.
        limit: Largest |A|.

    Source: MixGRPO (arXiv 2507.21802), "advantage aggregation" in its code. DanceGRPO (arXiv 2505.07818) on video adds
    up one clipped loss a reward, which is this where no ratio is clipped.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    delta: float = 1e-8
    limit: float = 5.0

    @property
    def reads(self) -> tuple[str, ...]:
        """The parts with a weight."""
        return tuple(self.weights)

    def __call__(self, rewards: Rewards, group: Tensor) -> Tensor:
        """Return `[B]` float32."""
        parts = parts_of(rewards, self.reads)
        total = weighted({name: z_score(part, group, self.delta) for name, part in parts.items()}, self.weights)
        return total.clamp(-self.limit, self.limit)
