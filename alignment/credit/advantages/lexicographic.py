"""Rewards in order of importance: a later one decides where the earlier ones tie."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from alignment.credit.advantages.parts import ByPart, parts_of, placed, z_score
from alignment.errors import ConfigError
from reward_models.base import Rewards


@dataclass(frozen=True)
class Lexicographic(ByPart):
    """The z-score within the group of each sample's place in the order by part 1, then part 2, and so on.

    Samples that tie in all parts share a place. Only order counts: any increasing change of a reward leaves the credit
    as it was.

    Attributes:
        parts: Names of the parts of the reward, most important first; empty takes every part in the reward's own order,
            or the reward itself where it has none.
        tolerance: Two neighbouring scores of a part tie where they are no further apart than this, in standard
            deviations of the part within the group, >= 0.
        delta: Added to the std.
        limit: Largest |A|.

    Source: the lexicographic order of multi-objective decisions; places in place of scores, and ties by gaps so that
    being tied carries over from neighbour to neighbour, are ours.
    """

    tolerance: float = 0.0
    delta: float = 1e-8
    limit: float = 5.0

    def __post_init__(self) -> None:
        if self.tolerance < 0:
            raise ConfigError(f"tolerance must be >= 0, got {self.tolerance}")

    def __call__(self, rewards: Rewards, group: Tensor) -> Tensor:
        """Return `[B]` float32."""
        place = placed(parts_of(rewards, self.parts), group, self._place)
        return z_score(place, group, self.delta, self.limit)

    def _place(self, scores: Tensor) -> Tensor:
        levels = torch.stack([self._levels(part) for part in scores.double().unbind(dim=1)], dim=1)
        return torch.unique(levels, dim=0, return_inverse=True)[1]

    def _levels(self, score: Tensor) -> Tensor:
        """Return `[n]` int64: 0 for the lowest scores, one more after each gap."""
        ordered, order = score.sort(stable=True)
        apart = ordered.diff() > self.tolerance * (score.std() if self.tolerance else 0.0)
        levels = torch.zeros_like(order)
        levels[order[1:]] = apart.cumsum(0)
        return levels
