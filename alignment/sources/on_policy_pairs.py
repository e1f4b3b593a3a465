"""The best and the worst of a group, as a preference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from alignment.context import Context
from alignment.data.batches import Batch, Experience, Groups, Pairs
from alignment.errors import ConfigError
from alignment.sources.base import Source, StepShape, calls_of
from alignment.sources.clean_samples import clean_samples
from alignment.sources.credited import check_geometry, gathered, refuse, reward_metrics
from alignment.sources.overlap import Overlap
from alignment.sources.scouting.scout import Scout, check_scout
from reward_models.base import RewardModel


@dataclass(frozen=True)
class OnPolicyPairs(Source[Pairs]):
    """Sample each prompt `group_size` times and prefer its best sample to its worst: online DPO.

    A group whose scores differ by less than `margin` has no preference: its pair is kept and has no gradient. What
    the pairs are compared with (the start, a moving or a refreshed reference) is the objective's `anchor`.

    Attributes:
        prompts: Prompts per step, over all processes.
        group_size: Samples per prompt, >= 2.
        reward: What scores the samples.
        margin: Smallest difference of scores that counts as a preference, >= 0; a tie never does.
        strength: Weight of a preference: "one", or the "difference" of the two scores.
        weights: Which weights sample.
        prompts_per_call: Prompts in one pipeline call; null means all of this process.
        overlap: Score the samples of one pipeline call during the next call, if a GPU or another process scores them;
            false: never; "always": also for a function of yours that waits for something else.
        scout: Sample more of them cheaply first, and make only those that score best and worst; null makes all.
            Pairs are of extremes in any case, so that there is nothing to correct.

    Source: online DPO as in Flow-Factory and flow_grpo (type "dpo"); they also pair tied groups, we do not.
    """

    prompts: int
    reward: RewardModel
    group_size: int = 8
    margin: float = 0.0
    strength: Literal["one", "difference"] = "one"
    weights: Literal["live", "behaviour"] = "live"
    prompts_per_call: int | None = None
    overlap: Overlap = True
    scout: Scout | None = None
    produces: ClassVar[type[Batch]] = Pairs

    def __post_init__(self) -> None:
        check_geometry(self.prompts, self.group_size, self.prompts_per_call)
        check_scout(self.scout, self.group_size, None)
        if self.margin < 0:
            raise ConfigError(f"source.margin must be >= 0, got {self.margin}")

    def shape(self, rounds: int | None) -> StepShape:
        """Return a pair for each prompt."""
        return StepShape(self.prompts, self.group_size, self.prompts, calls_of(self.prompts, self.prompts_per_call))

    def __call__(self, ctx: Context, groups: Groups) -> Experience[Pairs]:
        """Sample, score and pair."""
        made = clean_samples(ctx, groups, self)
        everywhere, ids = gathered(ctx, made.rewards), ctx.world.gather(made.group)
        refuse(ctx, everywhere.value, self.reward)
        best, worst, preferred = self._extremes(made.rewards.value.reshape(len(groups), self.group_size))
        batch = Pairs(
            prompts=groups.prompts,
            seeds=ctx.draw.keys("pair", groups.ids),
            group=groups.ids,
            chunk=ctx.policy.form.chunk(groups.prompts, groups.ids),
            chosen=made.x0[best],
            rejected=made.x0[worst],
            advantage=preferred,
        )
        paired = (ctx.world.gather(preferred) > 0).float().mean().item()
        metrics = {**reward_metrics(everywhere, ids), "pairs/fraction": paired}
        if made.chosen.selection is not None:
            metrics |= made.chosen.selection.everywhere(ctx.world.gather).metrics(everywhere, ids)
        metrics |= made.chosen.spent(made.seconds)
        return Experience(batch, metrics, made.media, made.texts, made.rewards, made.seconds)

    def _extremes(self, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (row of the best, row of the worst, weight of that preference) of each group, `[P]` each.

        Args:
            scores: `[P, G]`; a sample without a score (NaN) is neither.
        """
        unscored = scores.isnan()
        high, best = scores.masked_fill(unscored, -torch.inf).max(dim=1)
        low, worst = scores.masked_fill(unscored, torch.inf).min(dim=1)
        first = torch.arange(len(scores)) * self.group_size
        preferred = (high > low) & (high - low >= self.margin)
        weight = torch.ones_like(high) if self.strength == "one" else high - low
        return first + best, first + worst, torch.where(preferred, weight, 0.0)
