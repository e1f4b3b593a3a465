"""How often a sample beats the others of its group: a reward from a judge that only compares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from reward_models.base import (
    Comparer,
    Composite,
    Loaded,
    Media,
    PairwiseJudge,
    RewardError,
    RewardModel,
    Rewards,
    Scope,
)


@dataclass(frozen=True)
class WinRate(RewardModel):
    """Score the mean probability that a pairwise judge prefers the sample to an opponent of its group, in [0, 1].

    The group is laid out in a circle, in the order of its samples' pixels. With `opponents` k, each sample meets the k
    after it and the k before it, so the pairs depend on the group alone. A sample that is alone, or whose comparisons
    all failed (NaN), has no score.

    Attributes:
        judge: What compares two samples.
        opponents: Opponents on either side of the circle, so up to twice as many in all; null means the whole group.
        both_orders: Show every pair in both orders and take the mean. This cancels a judge's preference for the first
            sample, at twice the cost.
        batch_size: Pairs the judge is asked about at once.

    Source: Pref-GRPO (arXiv 2508.20751), where all samples of a group meet. Its code shows each pair one way round,
    counts an answer that cannot be read as a draw, and rounds to three decimals; here a comparison that failed is left
    out, so that a judge's failures do not count as verdicts.
    """

    judge: PairwiseJudge
    opponents: int | None = None
    both_orders: bool = True
    batch_size: int = 16

    differentiable: ClassVar[bool] = False
    scope: ClassVar[Scope] = "group"

    def __post_init__(self) -> None:
        if self.opponents is not None and self.opponents < 1:
            raise RewardError(f"win_rate: opponents has to be at least 1, got {self.opponents}; null means everybody")
        if self.batch_size < 1:
            raise RewardError(f"win_rate: batch_size has to be at least 1, got {self.batch_size}")

    def __str__(self) -> str:
        """Return the judge's name too."""
        return f"win rate by {self.judge}"

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse what the judge refuses."""
        self.judge.check(prompts)

    def waits(self) -> bool:
        """Return whether the judge does."""
        return self.judge.waits()

    def load(self, *, device: torch.device) -> _WinRateScorer:
        """Load the judge."""
        return _WinRateScorer(self, self.judge.load(device=device))


@dataclass(frozen=True)
class _WinRateScorer:
    model: WinRate
    compare: Comparer

    @property
    def inner(self) -> tuple[Loaded, ...]:
        """What the judge is made of, where it is made of rewards."""
        return tuple(self.compare.inner) if isinstance(self.compare, Composite) else ()

    def __call__(self, *, media: Media, prompts: Sequence[str], group: Tensor) -> Rewards:
        """Score `media` within its groups."""
        pairs = [pair for rows in _groups(group) for pair in self._pairs(_laid_out(media, rows))]
        if self.model.both_orders:
            pairs = [ordered for i, j in pairs for ordered in ((i, j), (j, i))]
        total, count = torch.zeros(len(media), dtype=torch.float64), torch.zeros(len(media), dtype=torch.float64)
        for start in range(0, len(pairs), self.model.batch_size):
            first, second = torch.tensor(pairs[start : start + self.model.batch_size]).unbind(1)
            won = self._won(media, prompts, first, second)
            judged = ~won.isnan()
            for rows, share in ((first[judged], won[judged]), (second[judged], 1 - won[judged])):
                total.index_add_(0, rows, share)
                count.index_add_(0, rows, torch.ones_like(share))
        # 0 / 0 is NaN: nobody to be compared with.
        return Rewards((total / count).float().to(media.pixels.device))

    def _pairs(self, circle: list[int]) -> list[tuple[int, int]]:
        size = len(circle)
        reach = size - 1 if self.model.opponents is None else min(self.model.opponents, size - 1)
        met = {tuple(sorted((i, (i + d) % size))) for i in range(size) for d in range(1, reach + 1)}
        return [(circle[i], circle[j]) for i, j in sorted(met)]

    def _won(self, media: Media, prompts: Sequence[str], first: Tensor, second: Tensor) -> Tensor:
        texts = [prompts[int(row)] for row in first]
        where = media.pixels.device
        won = self.compare(first=media[first.to(where)], second=media[second.to(where)], prompts=texts)
        if won.shape != first.shape or bool(((won < 0) | (won > 1)).any()):
            raise RewardError(
                f"{self.model.judge} answered {len(first)} comparisons with {tuple(won.shape)} numbers from "
                f"{won.min().item():g} to {won.max().item():g}; one probability per pair is needed"
            )
        return won.detach().cpu().double()


def _groups(group: Tensor) -> list[list[int]]:
    """Return the rows of each group."""
    return [(group == one).nonzero().flatten().tolist() for one in group.unique()]


def _laid_out(media: Media, rows: list[int]) -> list[int]:
    """Return the rows of a group in an order that depends on the samples alone."""
    return sorted(rows, key=lambda row: media.pixels[row].detach().cpu().float().numpy().tobytes())
