"""Clean samples of the policy, by its own deterministic sampler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from alignment.advantages.base import Advantage
from alignment.advantages.group_norm import GroupNorm
from alignment.batches import Batch, Experience, Groups, Samples
from alignment.context import Context
from alignment.sources._collect import Stopwatch, assign, check_geometry, repeat, sample_ids
from alignment.sources._scoring import Scoring
from alignment.sources.base import Source
from reward_models.base import Media, RewardModel
from samplers import Conductor


@dataclass(frozen=True)
class OnPolicy(Source[Samples]):
    """Sample each prompt `group_size` times, each from its own noise, and keep the ends.

    Attributes:
        prompts: Prompts a step, over all processes.
        group_size: Samples a prompt, >= 2.
        reward: What scores the samples.
        advantage: How scores become credit.
        weights: Which weights sample: the live ones, or the slow copy DiffusionNFT calls "old".
        prompts_per_call: Prompts in one pipeline call; null means all of this process.
        overlap: Score the samples of one pipeline call while the next one makes its own; false scores them in between.
            The result is the same.
    """

    prompts: int
    reward: RewardModel
    group_size: int = 8
    advantage: Advantage = GroupNorm()
    weights: Literal["live", "behaviour"] = "live"  # pyright: ignore[reportIncompatibleVariableOverride]  # read-only
    prompts_per_call: int | None = None
    overlap: bool = True
    produces: ClassVar[type[Batch]] = Samples

    def __post_init__(self) -> None:
        check_geometry(self.prompts, self.group_size, self.prompts_per_call)

    def __call__(self, ctx: Context, groups: Groups) -> Experience[Samples]:
        """Sample, score and credit."""
        watch = Stopwatch()
        texts, ids = repeat(groups.prompts, self.group_size), sample_ids(groups, self.group_size)
        group = groups.ids.repeat_interleave(self.group_size)
        seeds = ctx.draw.keys("initial noise", ids)
        size = (self.prompts_per_call or len(groups)) * self.group_size
        ends, pixels = [], []
        with Scoring(ctx, self.reward, watch, overlap=self.overlap) as scoring:
            with ctx.policy.using(self.weights), ctx.policy.sampling():
                for i in range(0, len(texts), size):
                    conductor = Conductor()
                    with watch.time("rollout"):
                        clips = ctx.policy.call(conductor, texts[i : i + size], seeds[i : i + size], pixels=True)
                        assert clips is not None
                        assert conductor.final is not None
                        ends.append(conductor.final.float())
                        pixels.append(clips.float().cpu())
                    scoring.add(Media(pixels[-1]), texts[i : i + size], group[i : i + size])
            rewards = scoring.rewards()
        credit, metrics = assign(ctx, self.advantage, rewards, group, self.reward)
        batch = Samples(texts, seeds, group, torch.zeros_like(group), torch.cat(ends), credit)
        return Experience(batch, metrics, Media(torch.cat(pixels)), texts, rewards, watch.seconds)
