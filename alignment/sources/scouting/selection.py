"""What is known of samples that scouts chose, and the credit it makes.

A group of extremes is spread wider than samples are. With scores r, a selection S by the scouts' scores s and a
gradient z of the log density that is linear in r, cov_S(r, z) / var_S(r) is what it would be without selection, and
cov_S(r, z) is not. So scores are brought to the spread of all candidates before credit is computed, and credit is
weighed by the same ratio once more. How wide the candidates' own scores would be is told by those of the scouts:
var(r) = var_S(r) - b^2 (var_S(s) - var(s)), b = cov_S(r, s) / var_S(s) (Pearson and Lawley's correction for range).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from alignment.credit.advantages.base import Advantage
from alignment.credit.advantages.group_statistics import group_mean, group_rows, group_variance
from reward_models.base import Rewards


@dataclass(frozen=True)
class Selection:
    """The scouts of the chosen samples, `[B]` float32 each, group by group.

    Attributes:
        score: Each scout's score.
        variance: Of the scores of all candidates of its group.
        mean: Of the same.
        correct: Whether credit is that among all candidates.
    """

    score: Tensor
    variance: Tensor
    mean: Tensor
    correct: bool

    def everywhere(self, gather: Callable[[Tensor], Tensor]) -> Selection:
        """Return it for the samples of all processes."""
        return Selection(gather(self.score), gather(self.variance), gather(self.mean), self.correct)

    def credit(self, advantage: Advantage, rewards: Rewards, group: Tensor) -> Tensor:
        """Return the credit `[B]` of chosen samples with scores `rewards`."""
        if not self.correct:
            return advantage(rewards, group)
        ratio = self.ratio(rewards.value, group)
        among_all = Rewards(
            _brought(rewards.value, group, ratio),
            {name: _brought(part, group, self.ratio(part, group)) for name, part in rewards.parts.items()},
        )
        return (ratio * advantage(among_all, group)).float()

    def ratio(self, value: Tensor, group: Tensor) -> Tensor:
        """Return the spread of all candidates' scores over that of the chosen ones, `[B]`; 1 where nothing is known."""
        index, groups = group_rows(group)
        both = torch.where(value.isnan() | self.score.isnan(), torch.nan, value.double())
        scout = self.score.double().masked_fill(both.isnan(), torch.nan)
        mine, theirs = group_variance(both, index, groups, 0), group_variance(scout, index, groups, 0)
        centred = (both - group_mean(both, index, groups)[index]) * (scout - group_mean(scout, index, groups)[index])
        slope = group_mean(centred, index, groups) / theirs
        every = torch.zeros_like(mine).scatter(0, index, self.variance.double())
        left = (mine - slope.square() * (theirs - every)) / mine
        known = (mine > 0) & (theirs > 0)
        return torch.where(known, left.clamp(min=0).sqrt(), 1.0)[index]

    def metrics(self, rewards: Rewards, group: Tensor) -> dict[str, float]:
        """Return what scouts were worth."""
        return {
            "scout/mean": self.mean.nanmean().item(),
            "scout/rank_correlation": rank_correlation(self.score, rewards.value, group),
            "scout/spread": self.ratio(rewards.value, group).mean().item(),
        }


def chosen(scores: Tensor, keep: int) -> Tensor:
    """Return which keep / 2 worst and keep / 2 best candidates of each group are made anew, `[P, keep]`, in order.

    Args:
        scores: `[P, C]`; a scout without a score (NaN) stands in the middle.
        keep: How many.
    """
    known = torch.where(scores.isnan(), scores.nanmedian(dim=1, keepdim=True).values, scores)
    order = known.argsort(dim=1, stable=True)
    half = keep // 2
    return torch.cat([order[:, :half], order[:, order.shape[1] - half :]], dim=1).sort(dim=1).values


def rank_correlation(one: Tensor, other: Tensor, group: Tensor) -> float:
    """Return Spearman's correlation within groups, averaged over those in which neither ties throughout; else NaN."""
    found = []
    for rows in (group == each for each in group.unique()):
        known = rows & ~one.isnan() & ~other.isnan()
        a, b = (_ranks(values[known]) for values in (one, other))
        scale = (a.square().sum() * b.square().sum()).sqrt()
        if scale > 0:
            found.append((a * b).sum() / scale)
    return torch.stack(found).mean().item() if found else float("nan")


def _ranks(values: Tensor) -> Tensor:
    """Return centred ranks `[n]` float64; equal values share theirs."""
    below = (values[:, None] > values).double().sum(dim=1)
    above = (values[:, None] < values).double().sum(dim=1)
    return (below - above) / 2


def _brought(value: Tensor, group: Tensor, ratio: Tensor) -> Tensor:
    """Return scores `[B]` drawn towards the mean of their group."""
    index, groups = group_rows(group)
    mean = group_mean(value, index, groups)[index]
    return (mean + ratio * (value.double() - mean)).float()
