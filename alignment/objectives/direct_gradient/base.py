"""What direct reward gradients share: sample with a graph at the end, decode, score, and climb."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from alignment.context import Context
from alignment.data.batches import Batch, Starts
from alignment.errors import PipelineError
from alignment.objectives.base import Learn, Loss, Objective
from reward_models.base import Rewards
from samplers import Again, Conductor, Native, Round, Skip


@dataclass(frozen=True)
class Direct(Objective[Starts]):
    """A loss of the reward itself; its gradient goes through the scorer, the decoder and the last rounds of sampling.

    The rounds before `first` run without graph. The pipeline's own `__call__` samples and decodes, so guidance and
    masks are those of inference.
    """

    consumes: ClassVar[type[Batch]] = Starts
    differentiates: ClassVar[bool] = True

    @property
    def snapshots(self) -> tuple[str, ...]:
        """None."""
        return ()

    @abstractmethod
    def first(self, ctx: Context) -> int:
        """Return the first round with a graph, in a call of `ctx.policy.rounds` rounds."""

    def finish(self, first: int, rounds: int) -> Sequence[Round]:
        """Return what happens from round `first` on."""
        return [Native()] * (rounds - first)

    def of_reward(self, reward: Tensor) -> Tensor:
        """Return what is minimised, `[n]`."""
        return -reward

    def __call__(self, ctx: Context, batch: Starts, learn: Learn) -> None:
        """Sample the rows, score them, and learn.

        Raises:
            PipelineError: If the pipeline's pictures carry no graph.
        """
        assert ctx.reward is not None  # `checks` refuses a run without
        first, rounds = self.first(ctx), ctx.policy.rounds
        states = self.states(ctx, batch, first) if first else [None]
        before = Skip if ctx.policy.stubs else Again  # what is kept from round to round is made anew, without a graph
        for state in states:
            start = [*([before()] * (first - 1)), before(state)] if first else []
            with torch.enable_grad():
                pixels = self._pixels(ctx, batch, Conductor([*start, *self.finish(first, rounds)]))
                media = ctx.policy.media(batch.prompts, pixels.float())
                loss = self.loss(ctx.world.scorer(ctx.reward)(media=media, prompts=batch.prompts))
                learn(Loss(loss.per_row / len(states), loss.metrics))

    def states(self, ctx: Context, batch: Starts, first: int) -> Sequence[Tensor | None]:
        """Return the states that round `first` starts from, `[n, *latent]` each; the loss is the mean over them."""
        conductor = Conductor([*([Native()] * first), *([Skip()] * (ctx.policy.rounds - first))])
        ctx.policy.call(conductor, batch.prompts, batch.seeds, pixels=False)
        return [conductor.final]

    def _pixels(self, ctx: Context, batch: Starts, conductor: Conductor) -> Tensor:
        """Return what the call makes, with its graph."""
        pixels = ctx.policy.call(conductor, batch.prompts, batch.seeds, pixels=True, grad=True)
        if pixels is None or not pixels.requires_grad:
            raise PipelineError(
                f"policy.pipeline: what {type(ctx.policy.pipe).__name__} does after its last round lets no gradient "
                "through (decoding without graph, or conversion to numpy); choose an objective that learns from "
                "samples, such as nft or clipped_surrogate"
            )
        return pixels

    def loss(self, rewards: Rewards) -> Loss:
        """Return each row's loss; a row without a score has none."""
        value = rewards.value
        scored = ~value.detach().isnan()
        per_row = torch.zeros_like(value).masked_scatter(scored, self.of_reward(value[scored]))
        shown = {f"reward/{name}": part.detach() for name, part in rewards.parts.items()}
        metrics = {"reward/mean": value.detach(), **shown}
        metrics = {name: part[~part.isnan()] for name, part in metrics.items()}
        return Loss(per_row, metrics | {"reward/unscored_fraction": (~scored).float()})
