"""What objectives share that look at how far the error fell on each sample of a group."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from alignment.context import Context
from alignment.data.batches import Batch, Samples
from alignment.objectives._noised import Compared
from alignment.objectives._noising import Point, draw_points, error_change, frozen_answers
from alignment.objectives.base import Learn, Loss


@dataclass(frozen=True)
class Gains(Compared[Samples]):
    """A loss of the gains of a group's samples: gain(x) = e_frozen(x) - e(x), which stands for log rho(x).

    e(x) = mean |network(x_t) - target|^2 at the same time and noise for both policies, in the network's own space.
    """

    consumes: ClassVar[type[Batch]] = Samples
    whole_groups: ClassVar[bool] = True

    def draw(self, ctx: Context, batch: Samples) -> list[Point]:
        """Return the noised copies."""
        return draw_points(ctx, batch, batch.x0, self.times, self.points)

    @abstractmethod
    def of_gains(self, gain: Tensor, batch: Samples, group: Tensor) -> Loss:
        """Return the loss of one noised copy of each row.

        Args:
            gain: `[n]`, with graph.
            batch: The rows.
            group: `[n]` int64, each row's group as an index from 0.
        """

    def __call__(self, ctx: Context, batch: Samples, learn: Learn) -> None:
        """Noise the samples, ask the frozen copy, then learn point by point."""
        points = self.draw(ctx, batch)
        frozen = frozen_answers(ctx, batch, points, self.frozen)
        group = torch.unique(batch.group, return_inverse=True)[1]

        def receive(k: int, velocity: Tensor) -> None:
            gain = -error_change(velocity.float(), frozen[k], points[k].target)
            loss = self.of_gains(gain, batch, group)
            learn(Loss(loss.per_row / self.points, {"gain/mean": gain.detach(), **loss.metrics}))

        ctx.policy.visit(batch, [(p.x, p.t) for p in points], receive, grad=True)


def sum_by_group(value: Tensor, group: Tensor) -> Tensor:
    """Return the sum over each row's group, `[n]`."""
    return torch.zeros(int(group.max()) + 1, dtype=value.dtype, device=value.device).index_add(0, group, value)[group]
