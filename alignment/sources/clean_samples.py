"""Whole samples by the pipeline's own sampler, scored: the start of every source of clean samples."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from alignment.context import Context
from alignment.data.batches import Groups
from alignment.sources.credited import Stopwatch, repeat
from alignment.sources.overlap import Overlap, Scoring
from alignment.sources.scouting.choosing import Chosen, by_call, choose
from alignment.sources.scouting.scout import Scout
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

    @property
    def scout(self) -> Scout | None: ...


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
        chosen: Which they are among their scouts, where there were any.
        seconds: Time spent, by name.
    """

    texts: tuple[str, ...]
    seeds: Tensor
    group: Tensor
    x0: Tensor
    media: Media
    rewards: Rewards
    chosen: Chosen
    seconds: Mapping[str, float]


def clean_samples(ctx: Context, groups: Groups, how: Sampling) -> CleanSamples:
    """Sample each prompt of `groups` `how.group_size` times, each from its own noise, and score.

    Where scouts are sent, these are the samples that they point at.
    """
    watch = Stopwatch()
    texts = repeat(groups.prompts, how.group_size)
    group = groups.ids.repeat_interleave(how.group_size)
    calls = groups.calls(ctx.policy.form.prompts_per_call(how.prompts_per_call))
    sizes = [len(part) * how.group_size for _, part in calls]
    ends, pixels = [], []
    with Scoring(ctx, how.reward, watch, overlap=how.overlap) as scoring:
        with ctx.policy.using(how.weights), ctx.policy.sampling():
            chosen = choose(ctx, groups, calls, how, by_call(ctx, how.scout), nullcontext())
            seeds = ctx.draw.keys("initial noise", chosen.ids)
            for rows in torch.arange(len(texts)).split(sizes):
                conductor, mine = Conductor(), slice(int(rows[0]), int(rows[-1]) + 1)
                with watch.time("rollout"), ctx.policy.caching(ctx.policy.spec.cache):
                    clips = ctx.policy.call(conductor, texts[mine], seeds[mine], pixels=True)
                    assert clips is not None
                    assert conductor.final is not None
                    ends.append(conductor.final.float().to(ctx.policy.storage))
                    pixels.append(clips.float().cpu())
                scoring.add(ctx.policy.media(texts[mine], pixels[-1]), texts[mine], group[mine])
        rewards = scoring.rewards()
    media = ctx.policy.media(texts, torch.cat(pixels))
    seconds = {**watch.seconds, **chosen.seconds}
    return CleanSamples(texts, seeds, group, torch.cat(ends), media, rewards, chosen, seconds)
