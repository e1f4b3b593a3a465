"""What objectives share that imitate samples: the denoising loss, weighed."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from alignment.context import Context
from alignment.data.batches import Batch, Samples
from alignment.objectives._noised import Noised
from alignment.objectives._noising import draw_points, mean_square
from alignment.objectives.base import Learn, Loss


@dataclass(frozen=True)
class Imitation(Noised[Samples]):
    """L = w(A) e(x0), e = mean |network(x_t) - target|^2 in the network's own space."""

    consumes: ClassVar[type[Batch]] = Samples

    @abstractmethod
    def weight(self, advantage: Tensor) -> Tensor:
        """Return w, `[n]`."""

    def __call__(self, ctx: Context, batch: Samples, learn: Learn) -> None:
        """Noise the samples, then learn point by point."""
        points = draw_points(ctx, batch, batch.x0, self.times, self.points)
        weight = self.weight(batch.advantage)

        def receive(k: int, velocity: Tensor) -> None:
            error = mean_square(velocity.float() - points[k].target)
            told = {"imitation/error": error.detach(), "imitation/weight": weight, "imitation/weight_max": weight}
            learn(Loss(weight * error / self.points, told))

        ctx.policy.visit(batch, [(p.x, p.t) for p in points], receive, grad=True)
