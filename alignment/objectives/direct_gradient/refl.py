"""ReFL: climb the reward of the clean prediction at one late step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alignment.context import Context
from alignment.errors import ConfigError
from alignment.objectives.direct_gradient.base import Direct
from samplers import Round, Skip, Solve
from samplers.multistep import Clean


@dataclass(frozen=True)
class ReFL(Direct):
    """L = weight max(0, threshold - r(x0hat)), x0hat the clean prediction at a random late step, which has the graph.

    A sample above the threshold is good enough and has no gradient.

    Attributes:
        threshold: Reward above which there is no gradient, in the reward's own units (2 for ImageReward's z-scores).
        weight: Factor of the loss.
        share: The step is one of the last `share` of all steps, in (0, 1]; one draw per training step.

    Source: ImageReward (arXiv 2304.05977), algorithm 1 and its code: steps 30 to 39 of 40, threshold 2, weight 1e-3.
    The authors add the loss of pretraining on data of their own, which is not offered.
    """

    threshold: float = 2.0
    weight: float = 1e-3
    share: float = 0.25

    def __post_init__(self) -> None:
        if self.weight <= 0 or not 0 < self.share <= 1:
            raise ConfigError(f"weight > 0 and share in (0, 1] are needed, got {self.weight} and {self.share}")

    def first(self, ctx: Context) -> int:
        """Return the one round with a graph."""
        rounds = ctx.policy.rounds
        late = min(rounds - 1, math.floor(rounds * (1 - self.share)))
        return int(torch.randint(late, rounds, (1,), generator=ctx.draw.generator("late step", ctx.step)))

    def finish(self, first: int, rounds: int) -> Sequence[Round]:
        """Return one jump to the clean prediction, also where the last step would keep some noise."""
        return [Solve(Clean(), to=rounds), *([Skip()] * (rounds - first - 1))]

    def of_reward(self, reward: Tensor) -> Tensor:
        """Return what the reward lacks."""
        return self.weight * (self.threshold - reward).clamp(min=0)
