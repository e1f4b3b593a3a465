"""What every normalisation of rewards over groups shares."""

from __future__ import annotations

import torch
from torch import Tensor


def group_rows(group: Tensor) -> tuple[Tensor, int]:
    """Return each row's group as an index `[B]` from 0, and the number of groups; ids are compared as integers."""
    ids, index = torch.unique(group, return_inverse=True)
    return index, len(ids)


def group_mean(value: Tensor, index: Tensor, groups: int) -> Tensor:
    """Return each group's mean over its scored rows, `[groups]` float64; 0 for a group with none."""
    scored = ~value.isnan()
    total = torch.zeros(groups, dtype=torch.float64).index_add(0, index[scored], value[scored].double())
    count = torch.zeros(groups, dtype=torch.float64).index_add(0, index, scored.double())
    return total / count.clamp(min=1)


def group_variance(value: Tensor, index: Tensor, groups: int, ddof: int) -> Tensor:
    """Return each group's variance over its scored rows, `[groups]` float64; 0 where fewer than two are scored."""
    scored = ~value.isnan()
    centred = (value.double() - group_mean(value, index, groups)[index])[scored].square()
    total = torch.zeros(groups, dtype=torch.float64).index_add(0, index[scored], centred)
    count = torch.zeros(groups, dtype=torch.float64).index_add(0, index[scored], torch.ones_like(centred))
    return torch.where(count > 1, total / (count - ddof).clamp(min=1), torch.zeros_like(total))


def credit(value: Tensor, group: Tensor, std: Tensor, limit: float) -> Tensor:
    """Return (reward - group mean) / std, clamped to +-limit, `[B]` float32.

    Unscored rows and groups without spread get exactly 0: a tie carries no preference, however small the std.

    Args:
        value: `[B]` float32, NaN where unscored.
        group: `[B]` int64.
        std: `[B]` or a number, > 0.
        limit: Largest magnitude.
    """
    index, groups = group_rows(group)
    centred = value.double() - group_mean(value, index, groups)[index]
    tied = group_spread(value, index, groups)[index] == 0
    return torch.where(value.isnan() | tied, torch.zeros_like(centred), (centred / std).clamp(-limit, limit)).float()


def group_spread(value: Tensor, index: Tensor, groups: int) -> Tensor:
    """Return each group's largest minus smallest score, `[groups]`: 0 exactly when all its scores are equal."""
    low = torch.full((groups,), float("inf")).scatter_reduce(0, index, value.nan_to_num(nan=float("inf")), "amin")
    high = torch.full((groups,), float("-inf")).scatter_reduce(0, index, value.nan_to_num(nan=float("-inf")), "amax")
    return (high - low).clamp(min=0).nan_to_num(nan=0.0)
