"""DRaFT: climb the reward through the last steps of sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from alignment.context import Context
from alignment.data.batches import Starts
from alignment.errors import ConfigError, PipelineError
from alignment.objectives.direct_gradient.base import Direct
from samplers import Conductor, Grid, Look, Native


@dataclass(frozen=True)
class DRaFT(Direct):
    """L = -r(x_0), with a graph through the last `last` steps of sampling, the decoder and the scorer.

    Such a reward is soon over-optimised: measure what you want with another, held-out reward, and stop early.

    Attributes:
        last: Steps with a graph; memory grows with it. All of them is the untruncated method.
        noises: DRaFT-LV: the finished sample is noised that many times to where the last `last` steps begin, and the
            gradients of these runs are averaged, which lowers their variance; null runs the steps once, from the
            state that sampling reached.

    Source: DRaFT (arXiv 2309.17400), DRaFT-K with K = `last`, and DRaFT-LV, which has K = 1.
    """

    last: int = 1
    noises: int | None = None

    def __post_init__(self) -> None:
        if self.last < 1:
            raise ConfigError(f"last must be >= 1, got {self.last}")
        if self.noises is not None and self.noises < 1:
            raise ConfigError(f"noises must be >= 1 or null, got {self.noises}")

    def check_rounds(self, rounds: int) -> None:
        """Refuse more steps with a graph than there are, and new noise at a state of pure noise."""
        if self.last > rounds:
            raise ConfigError(f"last: {self.last} steps are to have a graph, but a call takes {rounds}")
        if self.noises is not None and self.last == rounds:
            raise ConfigError(f"noises: a sample is noised again before some of the steps, not before all {rounds}")

    def first(self, ctx: Context) -> int:
        """Return the round before which the graph ends."""
        self.check_rounds(ctx.policy.rounds)
        return ctx.policy.rounds - self.last

    def states(self, ctx: Context, batch: Starts, first: int) -> Sequence[Tensor | None]:
        """Return the state that sampling reached, or the finished sample noised to that level.

        Raises:
            PipelineError: If not all of a state is noised alike.
        """
        if self.noises is None:
            return super().states(ctx, batch, first)
        if not ctx.policy.stubs:
            raise PipelineError(
                f"objective.noises: {type(ctx.policy.pipe).__name__} keeps something from round to round, so its "
                "answer to a state that was noised again depends on others; set noises to null"
            )
        seen: list[Grid] = []
        look = Look(lambda x, v, grid: seen.append(grid))
        conductor = Conductor([*([Native()] * first), look, *([Native()] * (ctx.policy.rounds - first - 1))])
        ctx.policy.call(conductor, batch.prompts, batch.seeds, pixels=False)
        x0, (alpha, sigma) = conductor.final, seen[0].departures[first]
        if x0 is None or seen[0].patches:
            raise PipelineError(
                f"objective.noises: {type(ctx.policy.pipe).__name__} has parts of its state at times of their own; set "
                "noises to null"
            )
        return [
            alpha * x0 + sigma * ctx.draw.normal("noise", batch.seeds, k, x0.shape[1:]).to(x0)
            for k in range(self.noises)
        ]
