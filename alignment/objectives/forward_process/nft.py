"""DiffusionNFT: reinforcement on the forward process."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from alignment.context import Context
from alignment.data.batches import Samples
from alignment.errors import ConfigError
from alignment.objectives.base import Loss
from alignment.objectives.forward_process.base import LossOfOutput, Matching
from alignment.objectives.forward_process.noising import Point, frozen_outputs, mean_square
from samplers.paths.path import Path, clean


@dataclass(frozen=True)
class NFT(Matching):
    """Pull an implicit positive policy to good samples and an implicit negative one to bad samples.

    With r = clip(A / (2 limit) + 1/2, 0, 1) and the behaviour policy's model output v_old:
        v+ = beta v + (1 - beta) v_old          v- = (1 + beta) v_old - beta v
        L = [r D(v+) + (1 - r) D(v-)] limit / beta + kl mean |v - v_ref|^2
    D is the squared error of the clean prediction divided by its own mean absolute error (detached), as in the
    authors' code; `self_normalised: false` gives the paper's plain squared error in the network's own space.

    Attributes:
        beta: Strength of the mixture, > 0.
        limit: Advantage that maps to r = 1.
        kl: Weight of the distance to the reference.
        self_normalised: See above.

    Source: DiffusionNFT (arXiv 2509.16117), eq. 5 and its code (train_nft_sd3), which takes the sampler's own times
    (SD3, ten steps: mean .66): `times: {distribution: sampler}`; ours are uniform (mean .51).
    """

    beta: float = 1.0
    limit: float = 5.0
    kl: float = 1e-4
    self_normalised: bool = True

    def __post_init__(self) -> None:
        if self.beta <= 0 or self.limit <= 0 or self.kl < 0 or self.points < 1:
            raise ConfigError("objective needs beta > 0, limit > 0, kl >= 0 and points >= 1")

    @property
    def snapshots(self) -> tuple[str, ...]:
        """The behaviour policy, and the reference where there is a KL term."""
        return ("behaviour", "reference") if self.kl > 0 else ("behaviour",)

    def of_outputs(self, ctx: Context, batch: Samples, points: list[Point]) -> LossOfOutput:
        """Return the loss against the behaviour policy, and the reference where there is a KL term."""
        old = frozen_outputs(ctx, batch, points, "behaviour")
        reference = frozen_outputs(ctx, batch, points, "reference") if self.kl > 0 else old
        path = ctx.policy.path
        return lambda k, model_output: self.loss(path, batch, points[k], model_output, old[k], reference[k])

    def loss(
        self, path: Path, batch: Samples, point: Point, model_output: Tensor, old: Tensor, reference: Tensor
    ) -> Loss:
        """Return the loss of one noised copy; `model_output` has the graph."""
        r = (batch.advantage / (2 * self.limit) + 0.5).clamp(0, 1)
        positive = self._distance(path, batch, point, self.beta * model_output + (1 - self.beta) * old)
        negative = self._distance(path, batch, point, (1 + self.beta) * old - self.beta * model_output)
        drift = mean_square(model_output - reference)
        per_row = (r * positive + (1 - r) * negative) * self.limit / self.beta + self.kl * drift
        metrics = {"kl/reference": drift.detach(), "nft/positive": positive.detach(), "nft/negative": negative.detach()}
        return Loss(per_row, metrics)

    def _distance(self, path: Path, batch: Samples, point: Point, v: Tensor) -> Tensor:
        if not self.self_normalised:
            return mean_square(v - point.target)
        error = clean(path, point.x, v, point.t) - batch.x0
        scale = error.detach().abs().double().flatten(1).mean(dim=1).clamp(min=1e-5)
        return mean_square(error) / scale.to(torch.float32)
