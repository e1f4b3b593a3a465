"""What advantages over several rewards share: the parts they read, and the credit of each by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import torch
from torch import Tensor

from alignment.credit.advantages.base import Advantage
from alignment.credit.advantages.group_statistics import credit, group_rows, group_variance
from reward_models.base import RewardError, Rewards


@dataclass(frozen=True)
class ByWeight(Advantage):
    """Credit from a weighted sum over the parts of a reward.

    Attributes:
        weights: Weight of each part of the reward, by its name; empty takes every part once, or the reward itself where
            it has none.
    """

    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse weights that are not numbers."""
        for name, weight in self.weights.items():
            if not math.isfinite(weight):
                raise ValueError(f"the weight of {name} has to be finite, got {weight}")

    @property
    def reads(self) -> tuple[str, ...]:
        """The parts with a weight."""
        return tuple(self.weights)


@dataclass(frozen=True)
class ByPart(Advantage):
    """Credit from comparing samples part by part.

    Attributes:
        parts: Names of the parts of the reward, in an order that may matter; empty takes every part in the reward's own
            order, or the reward itself where it has none.
    """

    parts: tuple[str, ...] = ()

    @property
    def reads(self) -> tuple[str, ...]:
        """The parts."""
        return self.parts


def parts_of(rewards: Rewards, names: Sequence[str] = ()) -> dict[str, Tensor]:
    """Return the parts `names` of a reward, in that order, `[B]` float32 each.

    A sample that lacks a score in one part is unscored (NaN) in all, because its other scores could not be compared.
    Empty `names` means all parts, except parts of parts; a reward without parts is its own only part.

    Raises:
        RewardError: If the reward has no part of one of these names.
    """
    if lacking := [name for name in names if name not in rewards.parts]:
        known = ", ".join(rewards.parts) or "none"
        raise RewardError(f"advantage: the reward has no part called {', '.join(lacking)}; its parts are: {known}")
    found = {name: rewards.parts[name] for name in names or top(rewards)} or {"value": rewards.value}
    missing = torch.stack(list(found.values())).isnan().any(dim=0)
    return {name: part.masked_fill(missing, torch.nan) for name, part in found.items()}


def top(rewards: Rewards) -> list[str]:
    """Return the names of the parts that are not parts of parts."""
    return [name for name in rewards.parts if "/" not in name]


def weighted(parts: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Return the sum of the parts `[B]`, each times its weight; without weights each counts once."""
    return torch.stack([weights.get(name, 1.0) * part for name, part in parts.items()]).sum(dim=0)


def z_score(value: Tensor, group: Tensor, delta: float = 1e-8, limit: float = torch.inf) -> Tensor:
    """Return (score - mean of its group) / (std of its group + delta), `[B]` float32, unbiased, clamped to +-limit.

    Unscored samples and groups without spread get exactly 0.
    """
    index, groups = group_rows(group)
    return credit(value, group, group_variance(value, index, groups, ddof=1).sqrt()[index] + delta, limit)


def placed(parts: Mapping[str, Tensor], group: Tensor, place: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the place of each sample in its group, `[B]` float32; NaN where it is unscored.

    Args:
        parts: Of `parts_of`.
        group: `[B]` int64.
        place: Returns the places `[n]` of samples with scores `[n, k]`.
    """
    scores = torch.stack(list(parts.values()), dim=1)
    places = torch.full_like(scores[:, 0], torch.nan)
    for one in group.unique():
        rows = ((group == one) & ~scores[:, 0].isnan()).nonzero().flatten()
        if len(rows):
            places[rows] = place(scores[rows]).to(places)
    return places


def conflicts(rewards: Rewards, group: Tensor) -> dict[tuple[str, str], float]:
    """Return the correlation of the credits that each two parts would give by themselves, in [-1, 1].

    Below 0 one part tends to praise what the other blames. Groups in which one of the two ties are left out. A pair
    without any group in which neither ties has no entry.
    """
    found = {}
    for one, other in combinations(top(rewards), 2):
        parts = parts_of(rewards, (one, other))
        a, b = (z_score(part, group).double() for part in parts.values())
        index, groups = group_rows(group)
        power = torch.zeros(2, groups, dtype=torch.float64).index_add(1, index, torch.stack([a, b]).square())
        informative = (power > 0).all(dim=0)[index]
        if informative.any():
            found[one, other] = ((a * b)[informative].sum() / (a[informative].norm() * b[informative].norm())).item()
    return found
