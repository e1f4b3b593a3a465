"""A weighted sum of each reward's own credit."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from alignment.credit.advantages.parts import ByWeight, parts_of, weighted, z_score
from alignment.errors import ConfigError
from reward_models.base import Rewards


@dataclass(frozen=True)
class Weighted(ByWeight):
    """A = sum of w_k z_k, z_k the z-score of part k within the group.

    Rewards that agree add up to larger credit than one alone has, rewards that disagree cancel; `gdpo` brings the sum
    back to unit spread.

    Attributes:
        delta: Added to the std of each part.
        limit: Largest |z_k|, as of a reward alone.
        limit_of_sum: Largest |A|; null leaves the sum as it is. One sample that all rewards single out has a large sum:
            14.1 for the best of 24 by three equal rewards.

    Source: MixGRPO (arXiv 2507.21802), "advantage aggregation" in its code, which clamps the sum at 5
    (`limit_of_sum: 5`) and not the parts. DanceGRPO (arXiv 2505.07818) on video adds up one clipped loss per reward,
    each with credit of its own, which is this where no ratio is clipped.
    """

    delta: float = 1e-8
    limit: float = 5.0
    limit_of_sum: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.limit_of_sum is not None and not self.limit_of_sum > 0:
            raise ConfigError(f"limit_of_sum must be > 0 or null, got {self.limit_of_sum}")

    def __call__(self, rewards: Rewards, group: Tensor) -> Tensor:
        """Return `[B]` float32."""
        parts = parts_of(rewards, self.reads)
        scores = {name: z_score(part, group, self.delta, self.limit) for name, part in parts.items()}
        total = weighted(scores, self.weights)
        return total if self.limit_of_sum is None else total.clamp(-self.limit_of_sum, self.limit_of_sum)
