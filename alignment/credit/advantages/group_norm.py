"""The z-score within each group."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from alignment.credit.advantages.base import Advantage
from alignment.credit.advantages.group_statistics import credit, group_rows, group_variance
from reward_models.base import Rewards


@dataclass(frozen=True)
class GroupNorm(Advantage):
    """A = (r - mean of its group) / (std of its group + delta).

    Attributes:
        delta: Added to the std.
        unbiased: Divide the variance by G - 1 (DanceGRPO) and not by G.
        limit: Largest |A|.

    Source: DanceGRPO (arXiv 2505.07818), eq. 7 and its code: unbiased, delta 1e-8, limit 5. A group whose scores are
    all equal gets 0, where the authors' code divides 0 by 1e-8. DDPO (arXiv 2305.13301) takes mean and std of the last
    16 or 32 scores of a prompt over several steps; here of the samples of one step, so that credit sums to 0 in a group
    and a resumed run needs no history.
    """

    delta: float = 1e-8
    unbiased: bool = True
    limit: float = 5.0

    def __call__(self, rewards: Rewards, group: Tensor) -> Tensor:
        """Return `[B]` float32."""
        index, groups = group_rows(group)
        std = group_variance(rewards.value, index, groups, ddof=int(self.unbiased)).sqrt()[index]
        return credit(rewards.value, group, std + self.delta, self.limit)
