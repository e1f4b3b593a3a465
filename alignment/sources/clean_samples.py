"""Whole samples by the pipeline's own sampler, scored: the start of every source of clean samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from alignment.context import Context
from alignment.data.batches import Groups
from alignment.sources.credited import Stopwatch, repeat, sample_ids
from alignment.sources.overlap import Overlap, Scoring
from reward_models.base import Media, RewardModel, Rewards
from samplers import Conductor


class Sampling(Protocol):
    """How a source samples; its own fields."""

    @property
    def group_size(self) -> int: ...

    @property
    def reward(self) -> RewardModel: ...

    @property
    def weights(self) -> str: ...

    @property
    def prompts_per_call(self) -> int | None: ...

    @property
    def overlap(self) -> Overlap: ...


@dataclass(frozen=True)
class CleanSamples:
    """This process's samples of a step, group by group.

    Attributes:
        texts: One per sample.
        seeds: `[B]`, keys of their initial noise.
        group: `[B]`, ids of their groups.
        x0: `[B, *latent]` float32.
        media: Their pixels, on the CPU.
        rewards: Their scores.
        seconds: Time spent, by name.
    """

    texts: tuple[str, ...]
    seeds: Tensor
    group: Tensor
    x0: Tensor
    media: Media
    rewards: Rewards
    seconds: Mapping[str, float]


def clean_samples(ctx: Context, groups: Groups, how: Sampling) -> CleanSamples:
    """Sample each prompt of `groups` `how.group_size` times, each from its own noise, and score."""
    watch = Stopwatch()
    texts = repeat(groups.prompts, how.group_size)
    group = groups.ids.repeat_interleave(how.group_size)
    seeds = ctx.draw.keys("initial noise", sample_ids(groups, how.group_size))
    size = ctx.policy.form.prompts_per_call(groups.prompts, how.prompts_per_call) * how.group_size
    ends, pixels = [], []
    with Scoring(ctx, how.reward, watch, overlap=how.overlap) as scoring:
        with ctx.policy.using(how.weights), ctx.policy.sampling():
            for i in range(0, len(texts), size):
                conductor = Conductor()
                with watch.time("rollout"):
                    clips = ctx.policy.call(conductor, texts[i : i + size], seeds[i : i + size], pixels=True)
                    assert clips is not None
                    assert conductor.final is not None
                    ends.append(conductor.final.float().to(ctx.policy.storage))
                    pixels.append(clips.float().cpu())
                made = ctx.policy.media(texts[i : i + size], pixels[-1])
                scoring.add(made, texts[i : i + size], group[i : i + size])
        rewards = scoring.rewards()
    media = ctx.policy.media(texts, torch.cat(pixels))
    return CleanSamples(texts, seeds, group, torch.cat(ends), media, rewards, watch.seconds)
