"""A sum of rewards in which the most erratic are damped first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from alignment.credit.advantages.parts import ByWeight, parts_of, weighted, z_score
from reward_models.base import RewardError, Rewards

_ROUNDING = 1e-9


@dataclass(frozen=True)
class LogTamed(ByWeight):
    """The z-score within the group of sum w_k r'_k, with r' = log(1 + r) for parts that vary too much.

    How much a part varies is h = std / (mean + 1e-6) over all samples of the step; it is tamed where h is above the
    threshold. The logarithm needs scores above -1, and h needs a mean above 0; anything else is an error, because a
    negative mean would reverse the comparison.

    Attributes:
        threshold: The mean or the median of h over the parts (a single part is then never tamed), or a number.
        delta: Added to the std of the group.
        limit: Largest |A|.

    Source: PaCo-GRPO (arXiv 2512.04784) and its code, which does not centre the sum where it is configured; here it is
    centred always. Statistics are those of the step on all processes.
    """

    threshold: Literal["mean", "median"] | float = "mean"
    delta: float = 1e-8
    limit: float = 5.0

    def __call__(self, rewards: Rewards, group: Tensor) -> Tensor:
        """Return `[B]` float32.

        Raises:
            RewardError: If a part has scores that cannot be tamed.
        """
        parts = parts_of(rewards, self.reads)
        if len(parts) > 1 or not isinstance(self.threshold, str):
            parts = self._tamed(parts)
        return z_score(weighted(parts, self.weights), group, self.delta, self.limit)

    def _tamed(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        varies = {name: _variation(name, part) for name, part in parts.items()}
        match self.threshold:
            case "mean":
                least = sum(varies.values()) / len(varies)
            case "median":
                least = torch.tensor([*varies.values()], dtype=torch.float64).quantile(0.5).item()
            case number:
                least = float(number)
        erratic = {name for name, h in varies.items() if h > least + _ROUNDING * abs(least)}
        return {name: part.log1p() if name in erratic else part for name, part in parts.items()}


def _variation(name: str, part: Tensor) -> float:
    scored = part[~part.isnan()].double()
    if not len(scored):
        return 0.0
    mean, low = scored.mean().item(), scored.min().item()
    if low <= -1 or mean <= 0 or math.isnan(mean):
        raise RewardError(
            f"advantage log_tamed: it needs scores above -1 with a mean above 0, but {name} goes down to {low:g} and "
            f"has the mean {mean:g}; shift that reward (`weighted` has centre and spread), or use gdpo"
        )
    return scored.std(correction=0).item() / (mean + 1e-6)
