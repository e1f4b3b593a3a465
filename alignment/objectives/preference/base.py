"""What objectives on pairs share: both sides noised alike, against a frozen copy, point by point."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn.functional import softplus

from alignment.context import Context
from alignment.data.batches import Batch, Pairs
from alignment.errors import ConfigError
from alignment.fact import fact
from alignment.objectives.base import Learn, Loss, Objective
from alignment.objectives.forward_process.noising import draw_points, error_change, frozen_outputs
from samplers.paths.times import Times


@dataclass(frozen=True)
class Pairwise(Objective[Pairs]):
    """A loss of how much more the error fell on one sample of a pair than on the other.

    With e(x) = mean |network(x_t) - target|^2 at the same time and noise for both samples and both policies, in the
    network's own space (noise, v, velocity or sample), and D(x) = e(x) - e_frozen(x), the gain of a pair is
    D(rejected) - D(chosen).

    Attributes:
        times: Distribution of the noised copies' times.
        points: Noised copies per row.
    """

    times: Times = Times()
    points: int = 1
    consumes: ClassVar[type[Batch]] = Pairs
    headline: ClassVar[str] = "pairs/accuracy"

    def __post_init__(self) -> None:
        if self.points < 1:
            raise ConfigError(f"objective needs points >= 1, got {self.points}")

    @fact
    def anchor(self) -> str:
        """The frozen copy that errors are compared with: fixed by the method, or a field of it."""
        return "reference"

    @property
    def snapshots(self) -> tuple[str, ...]:
        """The anchor."""
        return (self.anchor,)

    def gain(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the gain of each pair from D of both sides, `[n]` each."""
        return rejected - chosen

    @abstractmethod
    def of_gain(self, gain: Tensor, advantage: Tensor) -> Tensor:
        """Return what is minimised, `[n]`, of gains and preferences `[n]`."""

    def __call__(self, ctx: Context, batch: Pairs, learn: Learn) -> None:
        """Noise both sides alike, evaluate the frozen copy, then learn point by point."""
        sides = (draw_points(ctx, batch, x0, self.times, self.points) for x0 in (batch.chosen, batch.rejected))
        points = [point for pair in zip(*sides, strict=True) for point in pair]
        frozen = frozen_outputs(ctx, batch, points, self.anchor)
        chosen: list[Tensor] = []  # its graph waits for the rejected side of the same point

        def receive(k: int, model_output: Tensor) -> None:
            drift = error_change(model_output.float(), frozen[k], points[k].target)
            if k % 2 == 0:
                chosen.append(drift)
            else:
                learn(self.loss(batch, chosen.pop(), drift))

        ctx.policy.visit(batch, [(p.x, p.t) for p in points], receive, grad=True)

    def loss(self, batch: Pairs, chosen: Tensor, rejected: Tensor) -> Loss:
        """Return each row's share of the loss from D of both sides, `[n]` each."""
        gain = self.gain(chosen, rejected)
        right = gain.detach() * batch.advantage.sign()
        metrics = {
            "pairs/accuracy": (right > 0).float(),
            "pairs/gain": right,
            "pairs/chosen_drift": chosen.detach(),
        }
        return Loss(self.of_gain(gain, batch.advantage) / self.points, metrics)


Anchor = Literal["reference", "behaviour", "ema"]
"""What gains may be counted from, where the user chooses."""


def logistic(gain: Tensor, advantage: Tensor, beta: float) -> Tensor:
    """Return -log sigmoid(beta/2 gain), weighted by |advantage|; a negative advantage swaps the sides of the pair."""
    return advantage.abs() * softplus(-beta / 2 * gain * advantage.sign())
