"""Group-sampled denoising transitions of the policy itself."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from alignment.context import Context
from alignment.credit.advantages.base import Advantage
from alignment.credit.advantages.group_norm import GroupNorm
from alignment.credit.structures.base import Sampled, Structure
from alignment.data.batches import Batch, Experience, Groups, Transitions, concatenate
from alignment.errors import ConfigError, FieldError
from alignment.sources.base import Source, StepShape, calls_of, finished
from alignment.sources.credited import Stopwatch, assign, check_geometry, repeat, sample_ids, spread
from alignment.sources.extremes import check_keep, extremes
from alignment.sources.overlap import Overlap, Scoring, check_stale
from alignment.sources.scouting.choosing import Cheap, by_call, choose
from alignment.sources.scouting.scout import Scout, check_scout
from reward_models.base import Media, RewardModel
from samplers import rows_of
from samplers.dynamics.base import Dynamics
from samplers.rollout import RolloutPlan, Trajectory, observe_prefix, sample
from samplers.windows.base import Choice, Window

_MANY = 10_000
"""Denoising steps of a call whose number is not known yet: enough for every window."""


@dataclass(frozen=True)
class OnPolicySteps(Source[Transitions]):
    """Roll out each prompt `group_size` times by a stochastic sampler and keep the trained steps.

    Attributes:
        prompts: Prompts per step, over all processes.
        group_size: Samples per prompt, >= 2.
        dynamics: Rule of the stochastic steps.
        window: Which steps are stochastic and trained.
        reward: What scores the samples.
        advantage: How scores become credit.
        shared_noise: Whether a group starts from one initial noise, so that its samples differ by the sampler's noise
            alone.
        prompts_per_call: Prompts in one pipeline call; null means all of this process.
        overlap: Score the samples of one pipeline call during the next call, if a GPU or another process scores them;
            false: never; "always": also for a function of yours that waits for something else.
        tail: Denoiser calls for the steps after the window, by a second-order solver: a number of them, or a share of
            the steps that are left (0.4 for MixGRPO-Flash); null takes every step.
        keep: Learn from the keep / 2 samples of each group with the most credit and the keep / 2 with the least
            (DanceGRPO's best-of-N on video, whose code sorts over all prompts of a process); null learns from all.
        share_prefix: Run what a group has in common once per prompt; false is there for measurements.
        one_window: All pipeline calls of a step train the same steps, so that rows of several calls may share a pass of
            the update: passes then hold as many rows as `batch.microbatch` says, however few a call has. false chooses
            steps for each call, which trains more of them in a step.
        structure: What spreads the credit of a sample over its latent, for objectives that take a map; null gives every
            position all of it.
        scout: Sample more of them cheaply first, and make only those that score best and worst; null makes all.
        stale: 1 samples a step while the scores of the step before come in, by the policy before that one was learned
            from; ratios are those to the policy that sampled. For judges that take as long as sampling.
    """

    prompts: int
    reward: RewardModel
    dynamics: Dynamics
    window: Window
    group_size: int = 8
    advantage: Advantage = GroupNorm()
    shared_noise: bool = True
    prompts_per_call: int | None = None
    overlap: Overlap = True
    tail: int | float | None = None
    keep: int | None = None
    share_prefix: bool = True
    one_window: bool = False
    structure: Structure | None = None
    scout: Scout | None = None
    stale: Literal[0, 1] = 0
    produces: ClassVar[type[Batch]] = Transitions

    def __post_init__(self) -> None:
        check_geometry(self.prompts, self.group_size, self.prompts_per_call)
        check_keep(self.keep, self.group_size)
        check_scout(self.scout, self.group_size, self.keep)
        check_stale(self.stale, self.overlap)
        if self.stale and self.structure is not None:
            raise FieldError(
                "stale",
                "source.structure looks at samples that were scored, with the models that then score the next step's; "
                "use 0, or credit without a structure",
            )
        if self.scout is not None and self.scout.how.tail is None and self.shared_noise:
            raise FieldError(
                "scout.how",
                "samples of a group that share their initial noise differ by the noise of the window's steps, which "
                "such scouts leave out, so that all would be alike; use scout.how.tail, or shared_noise: false",
            )
        if self.tail is not None and not 0 < self.tail <= (math.inf if isinstance(self.tail, int) else 1):
            raise ConfigError(f"tail is a number of denoiser calls, or a share above 0 and up to 1.0, got {self.tail}")
        if not self.dynamics.stochastic:
            raise ConfigError(
                f"dynamics: {type(self.dynamics).__name__} is deterministic here, but a policy gradient needs the "
                "density of each step; choose dance_sde, flow_sde, coefficient_preserving or ddim with noise above 0"
            )
        if self._branches(None) and not self.shared_noise:
            raise ConfigError("window: branching needs source.shared_noise, because a group leaves one state")

    def shape(self, rounds: int | None) -> StepShape:
        """Return a row for each sample that is kept, or for each prompt whose samples leave one state."""
        rows = self.prompts * (1 if self._branches(rounds) else self.keep or self.group_size)
        return StepShape(self.prompts, self.group_size, rows, calls_of(self.prompts, self.prompts_per_call))

    def small(self) -> OnPolicySteps:
        """Return this source with two prompts in one call, four samples each, and no scouts."""
        return replace(self, prompts=2, group_size=4, keep=None, prompts_per_call=2, scout=None)

    def _branches(self, rounds: int | None) -> bool:
        return self.window.choose(_MANY if rounds is None else rounds, 0, 0, torch.Generator()).branch

    def __call__(self, ctx: Context, groups: Groups) -> Experience[Transitions]:
        """Sample, score and credit."""
        return finished(self.halves(ctx, groups))

    def halves(self, ctx: Context, groups: Groups) -> Generator[None, None, Experience[Transitions]]:
        """Sample; then wait for the scores and credit."""
        self._check_tails(ctx)
        watch = Stopwatch()
        calls = groups.calls(ctx.policy.form.prompts_per_call(self.prompts_per_call))
        cheap, scouts = self._cheaply(ctx, calls)
        chosen = choose(ctx, groups, calls, self, cheap, _in_step(ctx, scouts))
        plans = [
            self._plan(ctx, part, self._choose(ctx, number), samples)
            for (number, part), samples in zip(calls, chosen.of([part for _, part in calls]), strict=True)
        ]
        paths, pixels = [], []
        with Scoring(ctx, self.reward, watch, overlap=self.overlap) as scoring:
            with ctx.policy.sampling(), _in_step(ctx, plans):
                for (_, part), plan in zip(calls, plans, strict=True):
                    with watch.time("rollout"):
                        paths.append(sample(ctx.policy.call, plan).to(ctx.policy.storage))
                        pixels.append(paths[-1].pixels.float().cpu())
                    group = part.ids.repeat_interleave(self.group_size)
                    scoring.add(ctx.policy.media(plan.repeated, pixels[-1]), plan.repeated, group)
            yield
            rewards = scoring.rewards()
        texts = repeat(groups.prompts, self.group_size)
        media = ctx.policy.media(texts, torch.cat(pixels))
        group = groups.ids.repeat_interleave(self.group_size)
        credits, metrics = assign(ctx, self.advantage, rewards, group, self.reward, chosen.selection)
        metrics |= chosen.spent(watch.seconds)
        maps = None
        if self.structure is not None:
            with watch.time("structure"):
                credits, maps, map_metrics = spread(
                    ctx, self.structure, credits, self._sampled(ctx, groups, media, paths)
                )
            metrics |= map_metrics
        batches = [
            self._batch(part, plan, path, credit, self._chunks(ctx, number, self._rows(part, plan)))
            for (number, part), plan, path, credit in zip(
                calls, plans, paths, credits.split([len(part) * self.group_size for _, part in calls]), strict=True
            )
        ]
        batch = extremes(concatenate(batches), credits, self.group_size, self.keep)
        return Experience(batch, metrics, media, texts, rewards, {**watch.seconds, **chosen.seconds}, maps)

    def _check_tails(self, ctx: Context) -> None:
        tails = {"tail": self.tail, "scout.how.tail": None if self.scout is None else self.scout.how.tail}
        for key, tail in tails.items():
            if tail is not None and not ctx.policy.stubs:
                raise ConfigError(
                    f"source.{key}: {type(ctx.policy.pipe).__name__} keeps something from round to round, so no rounds "
                    "can be left out; set it to null"
                )

    def _cheaply(self, ctx: Context, calls: Sequence[tuple[int, Groups]]) -> tuple[Cheap, list[RolloutPlan]]:
        """Return what samples scouts, and the rollouts of those that follow the samples' paths and a shorter tail."""
        scout = self.scout
        if scout is None or scout.how.tail is None:
            return by_call(ctx, scout), []
        plans: dict[int, RolloutPlan] = {}
        for number, part in calls:
            samples = sample_ids(part, scout.candidates)
            plan = self._plan(ctx, part, self._choose(ctx, number), samples)
            plans[number] = replace(plan, tail=scout.how.tail)
        return lambda number, *_: sample(ctx.policy.call, plans[number]).pixels, list(plans.values())

    def _choose(self, ctx: Context, number: int) -> Choice:
        number = 0 if self.one_window else number
        generator = ctx.draw.generator("window", ctx.step, number)
        try:
            return self.window.choose(ctx.policy.rounds, ctx.step, number, generator)
        except ValueError as error:
            raise ConfigError(f"source.window: {error}") from error

    def _plan(self, ctx: Context, part: Groups, choice: Choice, samples: Tensor) -> RolloutPlan:
        """Return the rollout of samples with these keys, group by group."""
        seeds = ctx.draw.keys("initial noise", part.ids if self.shared_noise else samples)
        return RolloutPlan(
            part.prompts,
            seeds,
            len(samples) // len(part),
            ctx.policy.rounds,
            choice,
            self.dynamics,
            lambda k, shape: ctx.draw.normal("action", samples, k, shape),
            self.tail,
            self.share_prefix and ctx.policy.stubs,
        )

    def _sampled(self, ctx: Context, groups: Groups, media: Media, paths: list[Trajectory]) -> Sampled:
        seeds = ctx.draw.keys("structure", sample_ids(groups, self.group_size))
        x0 = torch.cat([path.x0 for path in paths])
        texts = repeat(groups.prompts, self.group_size)
        return Sampled(media, texts, x0, seeds, ctx.draw, ctx.policy, self.reward, ctx.world.scorer)

    def _chunks(self, ctx: Context, number: int, rows: int) -> Tensor:
        """Return which of the rows of call `number` may share a pass, with each other and with those of other calls."""
        form = ctx.policy.form
        return form.chunks(0 if self.one_window and form.mixes else number, rows)

    def _rows(self, part: Groups, plan: RolloutPlan) -> int:
        return len(part) * (1 if plan.choice.branch else self.group_size)

    def _batch(self, part: Groups, plan: RolloutPlan, path: Trajectory, credit: Tensor, chunk: Tensor) -> Transitions:
        choice, seeds, n = plan.choice, plan.seeds, len(chunk)
        rows = n // len(part)
        steps = [path.records[k] for k in choice.trained]
        return Transitions(
            prompts=repeat(part.prompts, rows),
            seeds=seeds.repeat_interleave(rows) if self.shared_noise else seeds,
            group=part.ids.repeat_interleave(rows),
            chunk=chunk,
            index=torch.tensor(choice.trained).expand(n, -1),
            x=torch.stack([s.x for s in steps], 1),
            x_next=torch.stack([s.x_next for s in steps], 1),
            model_output=torch.stack([s.model_output for s in steps], 1),
            coefficients=rows_of([s.step for s in steps], n),
            advantage=credit.unflatten(0, (n, -1)),
            mean_std=torch.full((n,), path.mean_std),
        )


@contextmanager
def _in_step(ctx: Context, plans: Sequence[RolloutPlan]) -> Iterator[None]:
    """Call the denoiser, after a block that rolls out `plans`, until all processes have called it equally often.

    Where no process can call it alone, the others would else wait for calls that do not come: steps are left out after
    a window, which lies elsewhere in each pipeline call. What the calls that are added return is not used.
    """
    mine = sum(plan.visits(single=ctx.policy.form.single) for plan in plans)
    lacking = ctx.world.together(mine) - mine
    yield
    for _ in range(lacking):
        observe_prefix(ctx.policy.call, plans[0].prompts[:1], plans[0].seeds[:1], 0, ctx.policy.rounds)
