"""Clean samples of the policy, by its own deterministic sampler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from alignment.context import Context
from alignment.credit.advantages.base import Advantage
from alignment.credit.advantages.group_norm import GroupNorm
from alignment.data.batches import Batch, Experience, Groups, Samples
from alignment.sources.base import Source, StepShape, calls_of
from alignment.sources.clean_samples import clean_samples
from alignment.sources.credited import assign, check_geometry
from alignment.sources.extremes import check_keep, extremes
from alignment.sources.overlap import Overlap
from alignment.sources.scouting.scout import Scout, check_scout
from reward_models.base import RewardModel


@dataclass(frozen=True)
class OnPolicy(Source[Samples]):
    """Sample each prompt `group_size` times, each from its own noise, and keep the finished samples.

    Attributes:
        prompts: Prompts per step, over all processes.
        group_size: Samples per prompt, >= 2.
        reward: What scores the samples.
        advantage: How scores become credit.
        weights: Which weights sample: the live ones, or the slow copy that DiffusionNFT calls "old".
        keep: Learn from the keep / 2 samples of each group with the most credit and the keep / 2 with the least; null
            learns from all.
        prompts_per_call: Prompts in one pipeline call; null means all of this process.
        overlap: Score the samples of one pipeline call during the next call, if a GPU or another process scores them;
            false: never; "always": also for a function of yours that waits for something else.
        scout: Sample more of them cheaply first, and make only those that score best and worst; null makes all.
    """

    prompts: int
    reward: RewardModel
    group_size: int = 8
    advantage: Advantage = GroupNorm()
    weights: Literal["live", "behaviour"] = "live"
    keep: int | None = None
    prompts_per_call: int | None = None
    overlap: Overlap = True
    scout: Scout | None = None
    produces: ClassVar[type[Batch]] = Samples

    def __post_init__(self) -> None:
        check_geometry(self.prompts, self.group_size, self.prompts_per_call)
        check_keep(self.keep, self.group_size)
        check_scout(self.scout, self.group_size, self.keep)

    def shape(self, rounds: int | None) -> StepShape:
        """Return a row for each sample that is kept."""
        rows = self.prompts * (self.keep or self.group_size)
        return StepShape(self.prompts, self.group_size, rows, calls_of(self.prompts, self.prompts_per_call))

    def __call__(self, ctx: Context, groups: Groups) -> Experience[Samples]:
        """Sample, score and credit."""
        made = clean_samples(ctx, groups, self)
        credit, metrics = assign(ctx, self.advantage, made.rewards, made.group, self.reward, made.chosen.selection)
        metrics |= made.chosen.spent(made.seconds)
        batch = Samples(
            made.texts, made.seeds, made.group, ctx.policy.form.chunk(made.texts, made.group), made.x0, credit
        )
        batch = extremes(batch, credit, self.group_size, self.keep)
        return Experience(batch, metrics, made.media, made.texts, made.rewards, made.seconds)
