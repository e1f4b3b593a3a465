"""Winners of a data file against samples of an earlier policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from alignment.context import Context
from alignment.data.batches import Batch, Experience, Groups, Pairs
from alignment.errors import ConfigError
from alignment.sources.base import Source, StepShape, calls_of
from alignment.sources.credited import Stopwatch
from alignment.sources.from_files import encode_samples, first_pictures, labels, labels_as_scores
from samplers import Conductor

OPPONENT = "opponent"


@dataclass(frozen=True)
class SemiPolicy(Source[Pairs]):
    """Read (prompt, media) from the data file and pair each winner with a sample of an earlier policy.

    After every `every` steps the policy is kept as the next of theta_0, theta_1, ..., and one of them becomes the
    opponent: it samples until the next one is chosen, and is what the objective compares with. The latest is the policy
    as it then is. The first policy and the latest `kept` - 1 stay at hand; the method's authors draw from all of
    theirs, of which there are seven.

    Attributes:
        prompts: Records per step, over all processes.
        opponent: Which of these policies: "uniform", any of them with equal chance; "first", the one before training;
            "last", the one just kept, from which the policy goes on.
        every: Steps from one change to the next.
        kept: Earlier policies at hand, >= 2; each takes as much memory as the trained weights.
        prompts_per_call: Prompts in one pipeline call; null means all of this process.

    Source: SePPO (arXiv 2410.05255), its reference selection; "random checkpoint replay" in the second version.
    """

    prompts: int
    opponent: Literal["uniform", "first", "last"] = "uniform"
    every: int = 30
    kept: int = 7
    prompts_per_call: int | None = None
    media: ClassVar[tuple[str, ...]] = ("media",)
    produces: ClassVar[type[Batch]] = Pairs

    def __post_init__(self) -> None:
        if self.every < 1 or self.kept < 2:
            raise ConfigError(f"source needs every >= 1 and kept >= 2, got {self.every} and {self.kept}")
        if self.prompts_per_call is not None and (self.prompts_per_call < 1 or self.prompts % self.prompts_per_call):
            raise ConfigError(f"prompts_per_call must divide prompts: {self.prompts} / {self.prompts_per_call}")

    @property
    def weights(self) -> str:
        """The opponent's."""
        return OPPONENT

    @property
    def snapshots(self) -> tuple[str, ...]:
        """The opponent, and the earlier policies it is chosen from."""
        return (OPPONENT, *(f"earlier-{slot}" for slot in range(self.kept)))

    def shape(self, rounds: int | None) -> StepShape:
        """Return a pair for each record."""
        return StepShape(self.prompts, 1, self.prompts, calls_of(self.prompts, self.prompts_per_call))

    def slot(self, number: int) -> int:
        """Return the slot of theta_number: the first stays, the others take turns."""
        return 0 if number == 0 else 1 + (number - 1) % (self.kept - 1)

    def choose(self, change: int, generator: torch.Generator) -> int:
        """Return which of theta_0 to theta_change becomes the opponent, of those at hand."""
        at_hand = [0, *range(max(1, change - self.kept + 2), change + 1)]
        if self.opponent == "uniform":
            return at_hand[int(torch.randint(len(at_hand), (), generator=generator))]
        return at_hand[0 if self.opponent == "first" else -1]

    def __call__(self, ctx: Context, groups: Groups) -> Experience[Pairs]:
        """Change the opponent when due, encode the winners and sample against them."""
        change, since = divmod(ctx.step, self.every)
        if since == 0 and change > 0:  # before that, all copies are the first policy
            ctx.policy.weights.refresh(f"earlier-{self.slot(change)}", decay=0.0)
            chosen = self.choose(change, ctx.draw.generator("opponent", change))
            ctx.policy.weights.copy(f"earlier-{self.slot(chosen)}", OPPONENT)
        watch = Stopwatch()
        seeds = ctx.draw.keys("pair", groups.ids)
        with watch.time("rollout"):
            samples = self._samples(ctx, groups)
        batch = Pairs(
            prompts=groups.prompts,
            seeds=seeds,
            group=groups.ids,
            chunk=ctx.policy.form.chunk(groups.prompts, groups.ids),
            chosen=encode_samples(ctx, groups),
            rejected=samples,
            advantage=labels(groups),
        )
        media, scores = first_pictures(ctx, groups), labels_as_scores(groups)
        return Experience(batch, {}, media, groups.prompts, scores, watch.seconds)

    def _samples(self, ctx: Context, groups: Groups) -> Tensor:
        """Return a sample of the opponent for each prompt, `[P, *latent]` float32."""
        ends: list[Tensor] = []
        with ctx.policy.using(OPPONENT), ctx.policy.sampling(), ctx.policy.caching(ctx.policy.spec.cache):
            for _, part in groups.calls(ctx.policy.form.prompts_per_call(self.prompts_per_call)):
                conductor, seeds = Conductor(), ctx.draw.keys("pair", part.ids)
                ctx.policy.call(conductor, part.prompts, seeds, pixels=False)
                assert conductor.final is not None
                ends.append(conductor.final.float().to(ctx.policy.storage))
        return torch.cat(ends)
