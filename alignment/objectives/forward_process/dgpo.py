"""DGPO: a group's preference for its good samples over its bad ones, without pairs and without an SDE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from alignment.context import Context
from alignment.data.batches import Samples
from alignment.errors import ConfigError
from alignment.objectives.base import Loss
from alignment.objectives.forward_process.base import LossOfOutput, Matching
from alignment.objectives.forward_process.noising import (
    Point,
    error_change,
    frozen_outputs,
    mean_square,
    noised_alike,
)
from alignment.objectives.kernels.actions import clipped


@dataclass(frozen=True)
class DGPO(Matching):
    """L = mean_i w_g max(A_i (1 - rho_i), A_i (1 - clip(rho_i, 1 - clip, 1 + clip))) + kl mean |v - v_ref|^2.

    With e = mean |v - v*|^2 at a time and noise that all samples of a group share:
        rho = exp(e_old - e)       w_g = sigmoid(beta mean_{i in g} A_i (e_i - e_ref,i)), without gradient
    The gradient of a group fades as its good samples gain on its bad ones. With two samples and A = +-1 the
    gradient is that of Diffusion-DPO, divided by its beta. The clipped loss is 0 at rho = 1, so the weight, which
    has no gradient, does not change the loss there.

    Attributes:
        beta: How fast the gradient of a group fades, in the units of a mean squared error.
        clip: Range of the ratio to the behaviour policy.
        kl: Weight of the distance to the reference.

    Source: Direct Group Preference Optimization, its authors' code: beta is no factor of the gradient there, and the
    weight is taken without gradient. Their reference may be a moving average; here it is the policy at the start. They
    take four times from the noisier .6 of the range and a KL weight of .001 to .02; here one, uniform, and none, which
    `points`, `times` and `kl` change.
    """

    beta: float = 100.0
    clip: float = 1e-2
    kl: float = 0.0
    whole_groups: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.beta < 0 or self.clip <= 0 or self.kl < 0 or self.points < 1:
            raise ConfigError("objective needs beta >= 0, clip > 0, kl >= 0 and points >= 1")

    @property
    def snapshots(self) -> tuple[str, ...]:
        """The policy of the ratio, and the one that gains are measured from."""
        return ("behaviour", "reference")

    def draw(self, ctx: Context, batch: Samples) -> list[Point]:
        """Return the noised copies; all samples of a group have one noise."""
        return super().draw(ctx, noised_alike(ctx, batch))

    def of_outputs(self, ctx: Context, batch: Samples, points: list[Point]) -> LossOfOutput:
        """Return the loss against the behaviour policy and the reference."""
        old = frozen_outputs(ctx, batch, points, "behaviour")
        reference = frozen_outputs(ctx, batch, points, "reference")
        return lambda k, model_output: self.loss(batch, points[k], model_output, old[k], reference[k])

    def loss(self, batch: Samples, point: Point, model_output: Tensor, old: Tensor, reference: Tensor) -> Loss:
        """Return the loss of one noised copy; `model_output` has the graph."""
        lost = batch.advantage * error_change(model_output.detach(), reference, point.target)
        _, index, count = torch.unique(batch.group, return_inverse=True, return_counts=True)
        pull = torch.sigmoid(self.beta * lost.new_zeros(len(count)).index_add(0, index, lost) / count)[index]
        ratio = (-error_change(model_output, old, point.target)).exp()
        drift = mean_square(model_output - reference)
        metrics = {
            "ratio/mean": ratio.detach(),
            "ratio/max": ratio.detach(),
            "ratio/min": ratio.detach(),
            "clip/fraction": ((ratio - 1).abs() > self.clip).float(),
            "dgpo/pull": pull,
            "kl/reference": drift.detach(),
            "matching/error": mean_square(model_output.detach() - point.target),
        }
        surrogate = batch.advantage + clipped(ratio, batch.advantage, self.clip)
        return Loss(pull * surrogate + self.kl * drift, metrics)
