"""Prompts, and the noise each sample starts from: for objectives that sample with gradient themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from alignment.context import Context
from alignment.data.batches import Batch, Experience, Groups, Starts
from alignment.errors import ConfigError
from alignment.sources.base import Source, StepShape
from alignment.sources.credited import repeat, sample_ids
from reward_models.base import Media, RewardModel, Rewards


@dataclass(frozen=True)
class PromptsOnly(Source[Starts]):
    """List each prompt `group_size` times, with a key of initial noise each; nothing is sampled yet.

    Attributes:
        prompts: Prompts per step, over all processes.
        reward: What the objective climbs; its gradient has to reach the pixels.
        group_size: Samples per prompt; they are not compared with each other, so one is enough.
    """

    prompts: int
    reward: RewardModel
    group_size: int = 1
    produces: ClassVar[type[Batch]] = Starts

    def __post_init__(self) -> None:
        if self.prompts < 1 or self.group_size < 1:
            raise ConfigError(f"prompts and group_size must be >= 1, got {self.prompts} and {self.group_size}")

    def shape(self, rounds: int | None) -> StepShape:
        """Return a row per sample; the objective makes them."""
        return StepShape(self.prompts, self.group_size, self.prompts * self.group_size)

    def __call__(self, ctx: Context, groups: Groups) -> Experience[Starts]:
        """List the rows."""
        texts, group = repeat(groups.prompts, self.group_size), groups.ids.repeat_interleave(self.group_size)
        seeds = ctx.draw.keys("initial noise", sample_ids(groups, self.group_size))
        batch = Starts(texts, seeds, group, ctx.policy.form.chunk(texts, group))
        return Experience(batch, {}, Media(torch.zeros(0, 1, 3, 1, 1), fps=None), (), Rewards(torch.zeros(0)))
