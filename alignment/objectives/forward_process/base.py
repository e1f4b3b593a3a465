"""What objectives on noised copies of clean samples share, and two families: imitation and gains."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from alignment.context import Context
from alignment.data.batches import Batch, Samples
from alignment.errors import ConfigError
from alignment.fact import fact
from alignment.objectives.base import Learn, Loss, Objective
from alignment.objectives.forward_process.noising import Point, draw_points, error_change, frozen_outputs, mean_square
from samplers.paths.times import Times

LossOfOutput = Callable[[int, Tensor], Loss]
"""Takes the index of a noised copy and the model output there, `[n, *latent]` float32 with graph; gives its loss."""


@dataclass(frozen=True)
class Matching(Objective[Samples]):
    """A loss of model outputs on noised copies of clean samples; `of_outputs` is the method's own part.

    Attributes:
        times: Distribution of the noised copies' times.
        points: Noised copies per sample.
    """

    times: Times = Times()
    points: int = 1
    consumes: ClassVar[type[Batch]] = Samples

    def __post_init__(self) -> None:
        if self.points < 1:
            raise ConfigError(f"objective needs points >= 1, got {self.points}")

    @property
    def snapshots(self) -> tuple[str, ...]:
        """None."""
        return ()

    def draw(self, ctx: Context, batch: Samples) -> list[Point]:
        """Return the noised copies."""
        return draw_points(ctx, batch, batch.x0, self.times, self.points)

    @abstractmethod
    def of_outputs(self, ctx: Context, batch: Samples, points: list[Point]) -> LossOfOutput:
        """Evaluate the frozen copies, and return the function from a model output to its loss.

        Args:
            ctx: The step.
            batch: The rows.
            points: Their noised copies. The loss is the mean over these.
        """

    def __call__(self, ctx: Context, batch: Samples, learn: Learn) -> None:
        """Noise the samples, evaluate the frozen copies, then learn point by point."""
        points = self.draw(ctx, batch)
        of_output = self.of_outputs(ctx, batch, points)

        def receive(k: int, model_output: Tensor) -> None:
            loss = of_output(k, model_output.float())
            learn(Loss(loss.per_row / self.points, loss.metrics))

        ctx.policy.visit(batch, [(p.x, p.t) for p in points], receive, grad=True)


@dataclass(frozen=True)
class Imitation(Matching):
    """L = w(A) e(x0), e = mean |network(x_t) - target|^2 in the network's own space."""

    @abstractmethod
    def weight(self, advantage: Tensor) -> Tensor:
        """Return w, `[n]`."""

    def of_outputs(self, ctx: Context, batch: Samples, points: list[Point]) -> LossOfOutput:
        """Return the weighed error."""
        weight = self.weight(batch.advantage)

        def of_output(k: int, model_output: Tensor) -> Loss:
            error = mean_square(model_output - points[k].target)
            metrics = {"imitation/error": error.detach(), "imitation/weight": weight, "imitation/weight_max": weight}
            return Loss(weight * error, metrics)

        return of_output


@dataclass(frozen=True)
class Gains(Matching):
    """A loss of the gains of a group's samples: gain(x) = e_frozen(x) - e(x), which stands for log rho(x).

    e(x) = mean |network(x_t) - target|^2 at the same time and noise for both policies, in the network's own space.
    """

    whole_groups: ClassVar[bool] = True

    @fact
    def anchor(self) -> str:
        """The frozen copy that gains are counted from."""
        return "reference"

    @property
    def snapshots(self) -> tuple[str, ...]:
        """The anchor."""
        return (self.anchor,)

    @abstractmethod
    def of_gains(self, gain: Tensor, batch: Samples, group: Tensor) -> Loss:
        """Return the loss of one noised copy of each row.

        Args:
            gain: `[n]`, with graph.
            batch: The rows.
            group: `[n]` int64, each row's group as an index from 0.
        """

    def of_outputs(self, ctx: Context, batch: Samples, points: list[Point]) -> LossOfOutput:
        """Return the loss of gains against the anchor."""
        frozen = frozen_outputs(ctx, batch, points, self.anchor)
        group = torch.unique(batch.group, return_inverse=True)[1]

        def of_output(k: int, model_output: Tensor) -> Loss:
            gain = -error_change(model_output, frozen[k], points[k].target)
            loss = self.of_gains(gain, batch, group)
            return Loss(loss.per_row, {"gain/mean": gain.detach(), **loss.metrics})

        return of_output


def sum_by_group(value: Tensor, group: Tensor) -> Tensor:
    """Return the sum over each row's group, `[n]`."""
    return torch.zeros(int(group.max()) + 1, dtype=value.dtype, device=value.device).index_add(0, group, value)[group]
