"""AlignProp: climb the reward through a random number of sampling steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from alignment.context import Context
from alignment.errors import ConfigError
from alignment.objectives.direct_gradient.base import Direct


@dataclass(frozen=True)
class AlignProp(Direct):
    """L = -r(x_0), with a graph through the last k steps of sampling, k drawn anew for each training step.

    Early steps get a gradient now and then, at a bounded average cost. `policy.gradient_checkpointing`
    keeps long graphs small.

    Attributes:
        least: Fewest steps with a graph, >= 1.
        most: Most of them; null means all steps of a call.

    Source: AlignProp (arXiv 2310.03739), randomised truncated backpropagation. Its code draws k for each sample; here
    the rows of a training step share it, so that they go through the pipeline together. The mean gradient is the same.
    It draws k from a normal distribution by default (8 +- 5 of 50 steps); here it is uniform.
    """

    least: int = 1
    most: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.least <= (self.most or self.least):
            raise ConfigError(f"1 <= least <= most is needed, got least {self.least} and most {self.most}")

    def check_rounds(self, rounds: int) -> None:
        """Refuse more steps with a graph than there are."""
        if (most := self.most or self.least) > rounds:
            raise ConfigError(f"up to {most} steps are to have a graph, but a call takes {rounds}")

    def first(self, ctx: Context) -> int:
        """Return the round before which the graph of this training step ends."""
        rounds = ctx.policy.rounds
        self.check_rounds(rounds)
        generator = ctx.draw.generator("truncation", ctx.step)
        return rounds - int(torch.randint(self.least, (self.most or rounds) + 1, (1,), generator=generator))
