"""Diffusion-DPO: a preference as a difference of denoising errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import softplus

from alignment.batches import Batch, Pairs
from alignment.context import Context
from alignment.errors import ConfigError
from alignment.objectives._noising import draw_points, frozen_answers, mean_square
from alignment.objectives.base import Learn, Loss, Objective
from samplers.times import Times


@dataclass(frozen=True)
class DPO(Objective[Pairs]):
    """Let the denoising error fall further on the chosen sample than on the rejected one, against the reference.

    With e(x) = mean |network(x_t) - target|^2 at the same time and noise for both samples and both policies, in the
    network's own space (noise, v, velocity or sample):
        D(x) = e(x) - e_ref(x)        L = -log sigmoid(-beta/2 (D(chosen) - D(rejected)))

    Attributes:
        beta: Strength. The mean over elements fixes its meaning: a sum over D elements wants beta / D.
        times: Distribution of the noised copies' times.
        points: Noised copies a pair.

    Source: Diffusion-DPO (arXiv 2311.12908), eq. 14, with the constant weight of the authors' code in place of
    T w(lambda). A pair weighs |advantage|, and a negative one swaps its sides.
    """

    beta: float = 2000.0
    times: Times = Times()
    points: int = 1
    consumes: ClassVar[type[Batch]] = Pairs

    def __post_init__(self) -> None:
        if self.beta <= 0 or self.points < 1:
            raise ConfigError(f"objective needs beta > 0 and points >= 1, got {self.beta} and {self.points}")

    @property
    def snapshots(self) -> tuple[str, ...]:
        """The reference."""
        return ("reference",)

    def __call__(self, ctx: Context, batch: Pairs, learn: Learn) -> None:
        """Noise both sides alike, ask the reference, then learn point by point."""
        sides = (draw_points(ctx, batch, x0, self.times, self.points) for x0 in (batch.chosen, batch.rejected))
        points = [point for pair in zip(*sides, strict=True) for point in pair]
        reference = frozen_answers(ctx, batch, points, "reference")
        chosen: list[Tensor] = []  # its graph waits for the rejected side of the same point

        def receive(k: int, velocity: Tensor) -> None:
            target = points[k].target
            drift = mean_square(velocity.float() - target) - mean_square(reference[k] - target)
            if k % 2 == 0:
                chosen.append(drift)
            else:
                learn(self.loss(batch, chosen.pop(), drift))

        ctx.policy.visit(batch, [(p.x, p.t) for p in points], receive, grad=True)

    def loss(self, batch: Pairs, chosen: Tensor, rejected: Tensor) -> Loss:
        """Return each row's share of the loss from D of both sides, `[n]` each."""
        inside = -self.beta / 2 * (chosen - rejected) * batch.advantage.sign()
        per_row = batch.advantage.abs() * softplus(-inside)
        metrics = {
            "dpo/accuracy": (inside.detach() > 0).float(),
            "dpo/margin": inside.detach(),
            "dpo/chosen_drift": chosen.detach(),
        }
        return Loss(per_row / self.points, metrics)
