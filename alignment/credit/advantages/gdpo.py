"""Each reward normalised within the group, then added up."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from alignment.credit.advantages.parts import ByWeight, parts_of, weighted, z_score
from reward_models.base import Rewards


@dataclass(frozen=True)
class GDPO(ByWeight):
    """A = (sum of w_k z_k) / (its std over the step + delta), z_k the z-score of part k within the group.

    A weighted sum of raw rewards is dominated by the reward with the largest spread, and two samples whose sums tie get
    the same credit however different they are. Here each part has a spread of 1 before it is weighed.

    Attributes:
        delta: Added to the std of the step.
        limit: Largest |A|.

    Source: Group reward-Decoupled Normalization Policy Optimization, as in Flow-Factory (z-score of each reward within
    the group, weighted sum, z-score over the step). The second mean is not subtracted: it is 0 already, and stays 0
    within each group.
    """

    delta: float = 1e-4
    limit: float = 5.0

    def __call__(self, rewards: Rewards, group: Tensor) -> Tensor:
        """Return `[B]` float32."""
        parts = parts_of(rewards, self.reads)
        total = weighted({name: z_score(part, group) for name, part in parts.items()}, self.weights)
        scored = total[~next(iter(parts.values())).isnan()]
        std = scored.std(correction=0) if len(scored) else scored.sum()
        return (total / (std + self.delta)).clamp(-self.limit, self.limit)
