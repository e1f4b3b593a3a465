"""Trees of trajectories: samples share what comes before they part, and each parting is credited with all it led to."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from alignment.context import Context
from alignment.credit.advantages.base import Advantage
from alignment.credit.advantages.group_norm import GroupNorm
from alignment.data.batches import Batch, Experience, Groups, Transitions, concatenate
from alignment.errors import ConfigError
from alignment.sources.base import Source, StepShape, calls_of, finished
from alignment.sources.credited import Stopwatch, check_geometry, gathered, refuse, repeat, reward_metrics, sample_ids
from alignment.sources.overlap import Overlap, Scoring, check_stale
from reward_models.base import RewardModel, Rewards
from samplers import Grid, rows_of
from samplers.dynamics.base import Dynamics, take
from samplers.stand_in.conductor import Conductor, Look, Native, Recorded, Round, Skip
from samplers.step import mean_std


@dataclass(frozen=True)
class OnPolicyTree(Source[Transitions]):
    """Split every trajectory in `branching` at each of `splits`, and take ODE steps in between.

    A prompt has branching ** len(splits) samples, its leaves, and one row of the pipeline for each node on the way:
    with splits (0, 1, 2) of 6 steps and 2 branches 1 + 2 + 4 + 3 x 8 denoiser calls, where 8 samples apart take 48. A
    node is worth the mean reward of its leaves. The step into a node is credited by comparing the node with all others
    of its prompt at that depth. A row of the batch is a node with its `branching` actions, so the update runs the
    denoiser once for them.

    Attributes:
        prompts: Prompts per step, over all processes.
        dynamics: Rule of the splitting steps.
        reward: What scores the leaves.
        splits: Steps at which trajectories part, ascending.
        branching: Children of a node, >= 2.
        trained: Splits that are learned from (depth pruning); null for all. The deepest one has most of the rows.
        advantage: How the values of the nodes of one depth become credit.
        prompts_per_call: Prompts in one pipeline call; null means all of this process.
        overlap: Score the samples of one pipeline call during the next call, if a GPU or another process scores them;
            false: never; "always": also for a function of yours that waits for something else.
        stale: 1 samples a step while the scores of the step before come in, by the policy before that one was learned
            from; ratios are those to the policy that sampled. For judges that take as long as sampling.

    Source: BranchGRPO (arXiv 2509.06040) and TreeGRPO (arXiv 2512.08153). BranchGRPO takes SDE steps between the splits
    and trains them too; here, as in TreeGRPO, these are ODE steps, so that a node's worth is that of its split alone.
    Its code draws the noise of a split four times too large and takes the density without that factor; here both are
    the dynamics' own. TreeGRPO weighs children by their log densities where worth climbs up, BranchGRPO may; here it is
    the mean, which no draw of the noise biases. BranchGRPO's width pruning, which drops some leaves from the update, is
    not offered: a node is one row whatever its actions, so that it would save nothing. All depths have the same weight
    in the update, however many nodes they have.
    """

    prompts: int
    dynamics: Dynamics
    reward: RewardModel
    splits: tuple[int, ...] = (0, 1, 2)
    branching: int = 2
    trained: tuple[int, ...] | None = None
    advantage: Advantage = GroupNorm()
    prompts_per_call: int | None = None
    overlap: Overlap = True
    stale: Literal[0, 1] = 0
    produces: ClassVar[type[Batch]] = Transitions

    def __post_init__(self) -> None:
        if not self.splits or self.splits[0] < 0 or list(self.splits) != sorted(set(self.splits)):
            raise ConfigError(f"splits must be one or more steps >= 0, ascending, got {self.splits}")
        if self.branching < 2:
            raise ConfigError(f"branching must be >= 2, got {self.branching}: a node without siblings has no credit")
        if self.trained is not None and not 0 < len(set(self.trained) & set(self.splits)) == len(self.trained):
            raise ConfigError(f"trained must be one or more of the splits {self.splits}, each once, got {self.trained}")
        check_geometry(self.prompts, self.group_size, self.prompts_per_call)
        check_stale(self.stale, self.overlap)
        if not self.dynamics.stochastic:
            raise ConfigError(
                f"dynamics: {type(self.dynamics).__name__} is deterministic here, so branches would not part; choose "
                "dance_sde, flow_sde, coefficient_preserving or ddim with noise above 0"
            )

    @property
    def group_size(self) -> int:
        """Leaves of a prompt."""
        return self.branching ** len(self.splits)

    @property
    def rows_per_prompt(self) -> int:
        """Nodes that are learned from."""
        return sum(self.branching**depth for depth in self.depths)

    def shape(self, rounds: int | None) -> StepShape:
        """Return a row for each node that is learned from."""
        rows, calls = self.prompts * self.rows_per_prompt, calls_of(self.prompts, self.prompts_per_call)
        return StepShape(self.prompts, self.group_size, rows, calls)

    def small(self) -> OnPolicyTree:
        """Return this source with two prompts in one call."""
        return replace(self, prompts=2, prompts_per_call=2)

    @property
    def depths(self) -> list[int]:
        """Depths that are learned from."""
        return [d for d, k in enumerate(self.splits) if self.trained is None or k in self.trained]

    def __call__(self, ctx: Context, groups: Groups) -> Experience[Transitions]:
        """Grow, score and credit."""
        return finished(self.halves(ctx, groups))

    def halves(self, ctx: Context, groups: Groups) -> Generator[None, None, Experience[Transitions]]:
        """Grow; then wait for the scores and credit."""
        self._check(ctx)
        watch, calls = Stopwatch(), groups.calls(ctx.policy.form.prompts_per_call(self.prompts_per_call))
        trees, pixels = [], []
        with Scoring(ctx, self.reward, watch, overlap=self.overlap) as scoring:
            with ctx.policy.sampling():
                for _, part in calls:
                    with watch.time("rollout"):
                        nodes, clips = self._grow(ctx, part)
                        trees.append([node.to(ctx.policy.storage) for node in nodes])
                        pixels.append(clips.float().cpu())
                    texts = repeat(part.prompts, self.group_size)
                    scoring.add(ctx.policy.media(texts, pixels[-1]), texts, part.ids.repeat_interleave(self.group_size))
            yield
            rewards = scoring.rewards()
        group = groups.ids.repeat_interleave(self.group_size)
        everywhere, ids = gathered(ctx, rewards), ctx.world.gather(group)
        refuse(ctx, everywhere.value, self.reward)
        batches = []
        for depth in self.depths:
            rows = [len(part) * self.branching ** (depth + 1) for _, part in calls]
            credit = self._credit(ctx, everywhere, ids, depth).split(rows)
            for (number, part), tree, shares in zip(calls, trees, credit, strict=True):
                batches.append(self._batch(ctx, part, tree, shares, depth, number))
        batch = concatenate(batches)
        # Prompt by prompt, as the rows of all processes follow each other: which rows meet in an update must not hang
        # on how many processes there are.
        batch = batch[(batch.group[:, None] == groups.ids).int().argmax(dim=1).argsort(stable=True)]
        if ctx.policy.form.single:
            batch = replace(batch, chunk=torch.arange(len(batch)))
        texts = repeat(groups.prompts, self.group_size)
        made = ctx.policy.media(texts, torch.cat(pixels))
        return Experience(batch, reward_metrics(everywhere, ids), made, texts, rewards, watch.seconds)

    def check_rounds(self, rounds: int) -> None:
        """Refuse a split at the last step or beyond."""
        if self.splits[-1] >= rounds - 1:
            raise ConfigError(
                f"splits: a split at step {self.splits[-1]} needs more than {rounds} steps: the last one is not trained"
            )

    def _check(self, ctx: Context) -> None:
        self.check_rounds(ctx.policy.rounds)
        if not ctx.policy.stubs:
            raise ConfigError(
                "source: this pipeline keeps something from round to round, so a tree cannot start from its nodes; "
                "choose on_policy_steps"
            )

    def _grow(self, ctx: Context, part: Groups) -> tuple[list[Recorded], Tensor]:
        """Return the split of every depth, states `[n, ...]` and next states `[n, branching, ...]`, and the leaves."""
        leaves = sample_ids(part, self.group_size)
        nodes: list[Recorded] = []
        for depth, k in enumerate(self.splits):
            rows = self.branching**depth
            seen: list[tuple[Tensor, Tensor, Grid]] = []
            look = Look(lambda x, v, grid, seen=seen: seen.append((x, v, grid)))
            script = [*self._behind(nodes), *self._between(depth), look]
            script += [Skip()] * (ctx.policy.rounds - len(script))
            ctx.policy.call(Conductor(script), repeat(part.prompts, rows), self._seeds(ctx, part, rows), pixels=False)
            x, v, grid = seen[0]
            step = take(self.dynamics, grid, k, k + 1).to(x.device).for_actions()
            if not step.random:
                raise ConfigError(f"source.splits: {type(self.dynamics).__name__} has no noise at step {k}")
            children = leaves.view(-1, self.group_size // (rows * self.branching))[:, 0]
            noise = ctx.draw.normal("action", children, k, x.shape[1:]).to(x.device).unflatten(0, (len(x), -1))
            x_next = step.sample(x[:, None], v[:, None], noise).to(x.dtype)
            nodes.append(Recorded(x.float(), v.float(), x_next.float(), step, grid))
        seeds = self._seeds(ctx, part, self.group_size)
        script = [*self._behind(nodes), *([Native()] * (ctx.policy.rounds - self.splits[-1] - 1))]
        clips = ctx.policy.call(Conductor(script), repeat(part.prompts, self.group_size), seeds, pixels=True)
        assert clips is not None
        return nodes, clips

    def _behind(self, nodes: list[Recorded]) -> list[Round]:
        """Return the rounds up to the last split, which starts from its actions."""
        if not nodes:
            return []
        return [*([Skip()] * self.splits[len(nodes) - 1]), Skip(nodes[-1].x_next.flatten(0, 1))]

    def _between(self, depth: int) -> list[Round]:
        before = self.splits[depth - 1] + 1 if depth else 0
        return [Native()] * (self.splits[depth] - before)

    def _seeds(self, ctx: Context, part: Groups, rows: int) -> Tensor:
        return ctx.draw.keys("initial noise", part.ids).repeat_interleave(rows)

    def _credit(self, ctx: Context, leaves: Rewards, group: Tensor, depth: int) -> Tensor:
        """Return the credit of this process's actions at `depth`, node by node."""
        below = self.group_size // self.branching ** (depth + 1)

        def worth(score: Tensor) -> Tensor:
            return score.view(-1, below).nanmean(dim=1)

        nodes = Rewards(worth(leaves.value), {name: worth(part) for name, part in leaves.parts.items()})
        credit = self.advantage(nodes, group[::below])
        # A row counts once in the mean over rows, and there are more of them the deeper they are.
        share = self.rows_per_prompt / (len(self.depths) * self.branching**depth)
        return credit[ctx.world.share(len(credit))] * share

    def _batch(
        self, ctx: Context, part: Groups, tree: list[Recorded], credit: Tensor, depth: int, number: int
    ) -> Transitions:
        node, rows = tree[depth], self.branching**depth
        n = len(part) * rows
        return Transitions(
            prompts=repeat(part.prompts, rows),
            seeds=self._seeds(ctx, part, rows),
            group=part.ids.repeat_interleave(rows),
            chunk=torch.full((n,), number * len(self.splits) + depth),
            index=torch.full((n, 1), self.splits[depth]),
            x=node.x[:, None],
            x_next=node.x_next[:, None],
            model_output=node.model_output[:, None],
            coefficients=rows_of([node.step], n),
            advantage=credit.reshape(n, self.branching),
            mean_std=torch.full((n,), mean_std(tree[d].step for d in self.depths)),
        )
