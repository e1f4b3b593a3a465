"""A weighted sum of each reward's own credit."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from alignment.advantages._parts import ByWeight, parts_of, weighted, z_score
from reward_models.base import Rewards


@dataclass(frozen=True)
class Weighted(ByWeight):
    """A = sum of w_k z_k, z_k the z-score of part k within the group.

    Rewards that agree add up to larger credit than one alone has, rewards that disagree cancel; `gdpo` brings the sum
    back to unit spread.

    Attributes:
        delta: Added to the std of each part.
        limit: Largest |z_k|, as of a reward alone.

    Source: MixGRPO (arXiv 2507.21802), "advantage aggregation" in its code. DanceGRPO (arXiv 2505.07818) on video adds
    up one clipped loss a reward, each with credit of its own, which is this where no ratio is clipped.
    """

    delta: float = 1e-8
    limit: float = 5.0

    def __call__(self, rewards: Rewards, group: Tensor) -> Tensor:
        """Return `[B]` float32."""
        parts = parts_of(rewards, self.reads)
        scores = {name: z_score(part, group, self.delta, self.limit) for name, part in parts.items()}
        return weighted(scores, self.weights)
