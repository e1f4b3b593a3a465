"""Each sample is as good as its worst reward."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from alignment.credit.advantages.group_statistics import group_rows, group_spread
from alignment.credit.advantages.parts import ByPart, parts_of, z_score
from reward_models.base import Rewards


@dataclass(frozen=True)
class Min(ByPart):
    """The z-score within the group of min_k z_k, z_k the z-score of part k within the group.

    Nothing is gained by raising one reward at the cost of another. A part that ties in a group is left out of the
    minimum there.

    Attributes:
        delta: Added to each std.
        limit: Largest |A|.

    Source: the worst case over objectives is an old choice; comparing z-scores, so that units do not decide which
    reward is worst, is ours.
    """

    delta: float = 1e-8
    limit: float = 5.0

    def __call__(self, rewards: Rewards, group: Tensor) -> Tensor:
        """Return `[B]` float32."""
        index, groups = group_rows(group)
        worst = torch.full_like(rewards.value, torch.inf)
        for part in parts_of(rewards, self.parts).values():
            tied = group_spread(part, index, groups)[index] == 0
            z = z_score(part, group, self.delta).masked_fill(part.isnan(), torch.nan)
            worst = torch.where(tied & ~part.isnan(), worst, torch.minimum(worst, z))
        nothing = torch.zeros_like(worst)  # every part ties
        return z_score(torch.where(worst.isinf(), nothing, worst), group, self.delta, self.limit)
