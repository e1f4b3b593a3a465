"""Advantage-weighted matching: the policy gradient of the denoising loss itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from alignment.context import Context
from alignment.data.batches import Samples
from alignment.errors import ConfigError
from alignment.objectives.base import Loss
from alignment.objectives.forward_process.base import LossOfOutput, Matching
from alignment.objectives.forward_process.noising import Point, frozen_outputs, mean_square
from alignment.objectives.kernels.matching import matching_error


@dataclass(frozen=True)
class WeightedMatching(Matching):
    """AWM: l = -w(t) mean |v - v*|^2 stands for the log-likelihood of a clean sample, and rho = exp(l - l_old).

    L = mean max(-A rho, -A clip(rho, 1 - clip, 1 + clip)) + kl mean |v - v_anchor|^2, with the same (t, noise) for both
    policies.

    Attributes:
        clip: Range of the ratio.
        kl: Weight of the distance to the anchor.
        anchor: What the policy is held to: the slow behaviour copy, or the reference.
        weighting: w(t): 1, t or t^2.

    Source: Advantage Weighted Matching (arXiv 2509.25050), eq. 9. The authors' Huber weights are not offered; one ratio
    is taken for each time, not for their sum; errors are float32, not float64. They draw six times a sample and hold
    the policy both to the reference (weight 1e-4 to 3e-3) and to a moving average (weight 1); here it is one point and
    one anchor, off by default. Their released configs take the sampler's own times:
    `times: {distribution: sampler}`.
    """

    clip: float = 1.0
    kl: float = 0.0
    anchor: Literal["behaviour", "reference"] = "behaviour"
    weighting: Literal["one", "t", "t_squared"] = "one"

    def __post_init__(self) -> None:
        if self.clip <= 0 or self.kl < 0 or self.points < 1:
            raise ConfigError("objective needs clip > 0, kl >= 0 and points >= 1")

    @property
    def snapshots(self) -> tuple[str, ...]:
        """The behaviour policy of the ratio, and the anchor."""
        return ("behaviour", "reference") if self.anchor == "reference" and self.kl > 0 else ("behaviour",)

    def of_outputs(self, ctx: Context, batch: Samples, points: list[Point]) -> LossOfOutput:
        """Return the loss against the behaviour policy, and the anchor."""
        old = frozen_outputs(ctx, batch, points, "behaviour")
        anchor = frozen_outputs(ctx, batch, points, self.anchor) if self.snapshots[-1] == "reference" else old
        return lambda k, model_output: self.loss(batch, points[k], model_output, old[k], anchor[k])

    def loss(self, batch: Samples, point: Point, model_output: Tensor, old: Tensor, anchor: Tensor) -> Loss:
        """Return the loss of one noised copy; `model_output` has the graph."""
        w = {"one": torch.ones_like(point.t), "t": point.t, "t_squared": point.t.square()}[self.weighting]
        error = matching_error(model_output, point.target)
        ratio = (w * (matching_error(old, point.target) - error)).exp()
        clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
        surrogate = torch.maximum(-batch.advantage * ratio, -batch.advantage * clipped)
        drift = mean_square(model_output - anchor)
        metrics = {
            "ratio/mean": ratio.detach(),
            "ratio/max": ratio.detach(),
            "ratio/min": ratio.detach(),
            "clip/fraction": ((ratio - 1).abs() > self.clip).float(),
            f"kl/{self.anchor}": drift.detach(),
            "matching/error": error.detach(),
        }
        return Loss(surrogate + self.kl * drift, metrics)
