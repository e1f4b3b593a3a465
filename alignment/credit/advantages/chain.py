"""Only what all rewards agree on: places in chains of samples, each better than the next in every respect."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from alignment.credit.advantages.parts import ByPart, parts_of, placed, z_score
from reward_models.base import Rewards


@dataclass(frozen=True)
class Chain(ByPart):
    """The z-score within the group of each sample's place in the longest chains through it.

    One sample is above another where no part is lower and one is higher. With the longest chain of samples below it
    and the longest above it, the place of a sample is the one length minus the other. What is above has a higher place;
    a sample that cannot be compared with any other has the middle one, and no two rewards are ever weighed against
    each other.

    Attributes:
        delta: Added to the std.
        limit: Largest |A|.

    Source: chain preference grouping of ThinkRL-Edit. We did not find how its authors place samples that cannot be
    compared; the difference of the two lengths is ours.
    """

    delta: float = 1e-8
    limit: float = 5.0

    def __call__(self, rewards: Rewards, group: Tensor) -> Tensor:
        """Return `[B]` float32."""
        place = placed(parts_of(rewards, self.parts), group, _place)
        return z_score(place, group, self.delta, self.limit)


def _place(scores: Tensor) -> Tensor:
    above = (scores[:, None] >= scores).all(dim=2) & (scores[:, None] > scores).any(dim=2)
    return _longest(above) - _longest(above.T)


def _longest(above: Tensor) -> Tensor:
    """Return the length of the longest chain below each of n samples, `[n]`; `above` `[n, n]` is a strict order."""
    length = torch.zeros(len(above))
    for _ in range(len(above)):
        length = torch.where(above, length + 1, 0).amax(dim=1)
    return length
