"""What objectives share that learn from noised copies of clean samples: alone, against a copy, by group."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from alignment.context import Context
from alignment.data.batches import Batch, Samples
from alignment.errors import ConfigError
from alignment.objectives.base import B_contra, Learn, Loss, Objective
from alignment.objectives.forward_process.noising import Point, draw_points, error_change, frozen_answers, mean_square
from samplers.paths.times import Times


@dataclass(frozen=True)
class Noised(Objective[B_contra]):
    """A loss of noised copies of clean samples.

    Attributes:
        times: Distribution of the noised copies' times.
        points: Noised copies a row.
    """

    times: Times = Times()
    points: int = 1

    def __post_init__(self) -> None:
        if self.points < 1:
            raise ConfigError(f"objective needs points >= 1, got {self.points}")

    @property
    def snapshots(self) -> tuple[str, ...]:
        """None."""
        return ()


@dataclass(frozen=True)
class Compared(Noised[B_contra]):
    """A loss of errors compared with those of a frozen copy."""

    @property
    def frozen(self) -> str:
        """The frozen copy that errors are compared with."""
        return "reference"

    @property
    def snapshots(self) -> tuple[str, ...]:
        """That copy."""
        return (self.frozen,)


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
