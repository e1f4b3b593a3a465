"""An advantage of your own is one dataclass; this one looks at places within a group and not at scores.

visalign train quickstart name=places \
        'source.advantage={type: "examples.add_an_advantage:Places"}'
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from alignment.credit.advantages.base import Advantage
from reward_models.base import Rewards


@dataclass(frozen=True)
class Places(Advantage):
    """Credit runs from -1 for the worst sample of a group to 1 for the best; equal scores get equal credit.

    A sample without a score (NaN) compares as neither above nor below any other, so it gets 0, as it has to.
    """

    def __call__(self, rewards: Rewards, group: Tensor) -> Tensor:
        """Return `[B]` float32."""
        score = rewards.value
        rivals = group[:, None] == group[None]
        above = (rivals & (score[:, None] > score[None])).sum(dim=1)
        below = (rivals & (score[:, None] < score[None])).sum(dim=1)
        others = (rivals & ~score.isnan()[None]).sum(dim=1) - 1
        return (above - below).to(torch.float32) / others.clamp(min=1)
