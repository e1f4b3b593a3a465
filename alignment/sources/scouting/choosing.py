"""Sending scouts out, and choosing by what they score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from alignment.context import Context
from alignment.data.batches import Groups
from alignment.sources.credited import Stopwatch, refuse, repeat, sample_ids
from alignment.sources.overlap import Overlap, Scoring
from alignment.sources.scouting.scout import Scout
from alignment.sources.scouting.selection import Selection, chosen
from reward_models.base import RewardModel
from samplers import Conductor

Cheap = Callable[[int, Groups, Tensor], Tensor]
"""cheap(number of a call, its prompts, `[P C]` keys of their samples) -> pixels `[P C, F, 3, H, W]`."""


class Sending(Protocol):
    """A source that may send scouts; its own fields."""

    @property
    def group_size(self) -> int: ...

    @property
    def reward(self) -> RewardModel: ...

    @property
    def overlap(self) -> Overlap: ...

    @property
    def scout(self) -> Scout | None: ...


@dataclass(frozen=True)
class Chosen:
    """Which samples are made.

    Attributes:
        ids: `[P G]` keys of their random streams, group by group.
        selection: What their scouts said; None where none were sent.
        seconds: Time that scouts took, under "scout".
    """

    ids: Tensor
    selection: Selection | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)

    def of(self, parts: Sequence[Groups]) -> tuple[Tensor, ...]:
        """Return the keys of the samples of each pipeline call."""
        each = len(self.ids) // sum(map(len, parts))
        return self.ids.split([len(part) * each for part in parts])

    def spent(self, seconds: Mapping[str, float]) -> dict[str, float]:
        """Return what share of the time for samples, `seconds`, the scouts took."""
        if self.selection is None:
            return {}
        exact = sum(seconds.get(name, 0.0) for name in ("rollout", "reward"))
        return {"scout/time_share": self.seconds["scout"] / (self.seconds["scout"] + exact)}


def choose(
    ctx: Context,
    groups: Groups,
    calls: Sequence[tuple[int, Groups]],
    how: Sending,
    cheap: Cheap,
    within: AbstractContextManager[None],
) -> Chosen:
    """Return which samples of `groups` are made: all that there are, or those that scouts point at.

    Args:
        ctx: Surroundings of the step.
        groups: Prompts of this process.
        calls: Its pipeline calls, each with its number.
        how: What asks for scouts.
        cheap: What samples them.
        within: The context in which all of them are sampled.

    Raises:
        RewardError: If too many scouts have no score, or those of the first step all have the same.
    """
    scout = how.scout
    if scout is None:
        return Chosen(sample_ids(groups, how.group_size))
    watch = Stopwatch()
    with watch.time("scout"), Scoring(ctx, how.reward, Stopwatch(), overlap=how.overlap) as scoring:
        with within:
            for number, part in calls:
                with ctx.policy.caching(scout.how.cache or ctx.policy.spec.cache):
                    pixels = cheap(number, part, sample_ids(part, scout.candidates)).float().cpu()
                texts, group = repeat(part.prompts, scout.candidates), part.ids.repeat_interleave(scout.candidates)
                scoring.add(ctx.policy.media(texts, pixels), texts, group)
        value = scoring.rewards().value
    refuse(ctx, ctx.world.gather(value), how.reward)
    scores = value.reshape(len(groups), scout.candidates)
    kept = chosen(scores, how.group_size)
    known, mean = ~scores.isnan(), scores.nanmean(dim=1, keepdim=True)
    variance = torch.where(known, scores - mean, 0.0).square().sum(dim=1) / known.sum(dim=1).clamp(min=1)
    each = how.group_size
    selection = Selection(
        scores.gather(1, kept).flatten(),
        variance.repeat_interleave(each),
        mean.flatten().repeat_interleave(each),
        scout.correct,
    )
    ids = sample_ids(groups, scout.candidates).reshape_as(scores).gather(1, kept).flatten()
    return Chosen(ids, selection, watch.seconds)


def by_call(ctx: Context, scout: Scout | None) -> Cheap:
    """Return what samples scouts by a pipeline call with other arguments, from the noise of the samples themselves."""

    def cheap(number: int, part: Groups, ids: Tensor) -> Tensor:
        assert scout is not None
        texts, seeds = repeat(part.prompts, scout.candidates), ctx.draw.keys("initial noise", ids)
        pixels = ctx.policy.call(Conductor(), texts, seeds, pixels=True, arguments=scout.how.call or None)
        assert pixels is not None
        return pixels

    return cheap
