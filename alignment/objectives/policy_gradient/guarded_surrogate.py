"""GRPO-Guard: ratios that are centred, and alike at every step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from alignment.data.batches import Transitions
from alignment.objectives.kernels.actions import Ratios, clipped, ratio_of
from alignment.objectives.policy_gradient.base import Stepwise
from samplers import Step
from samplers.step import expand, per_row


@dataclass(frozen=True)
class GuardedSurrogate(Stepwise):
    """The clipped surrogate with log rho replaced by std (log rho + mean |d mu|^2 / (2 std^2)).

    A density ratio is below 1 on average, by mean |d mu|^2 / (2 std^2), so that clipping cuts one side more than the
    other, and it spreads differently at every step. The replacement equals mean(d mu z), with z the noise that drew the
    action: its mean is 0 and its spread that of d mu alone.

    Attributes:
        clip: In the units of the new ratio; std times smaller than one for the plain ratio.

    Source: GRPO-Guard (arXiv 2510.22319), "RatioNorm". Its second part, the reweighting by 1 / |dt|, is
    `weight: equal`, here 1 / |b|, which serves the same end (every step pulls alike) for every dynamics. Flow-SDE's
    |b| is |dt| at t = 1 and (1 + a^2 / 2) |dt| elsewhere, so that a first step from pure noise weighs 1 + a^2 / 2 times
    more against the others than with the authors' weight. Their code averages the centring over the batch; here, as in
    the paper, over a sample's own elements.
    """

    clip: float = 2e-6

    def pull(self, step: Step) -> Tensor:
        """Return |b|: the ratio of this objective is mean(b (v - v_old) z), without the density's 1 / std."""
        return per_row(step.b.abs())

    def surrogate(self, step: Step, batch: Transitions, k: int, model_output: Tensor) -> tuple[Tensor, Ratios]:
        """Return the clipped loss of centred ratios."""
        ratio = ratio_of(self.centred_ratio(step, batch, k, model_output))
        return clipped(ratio, batch.advantage, self.clip).mean(dim=1), Ratios.of(ratio, self.clip)

    def centred_ratio(self, step: Step, batch: Transitions, k: int, model_output: Tensor) -> Tensor:
        """Return what stands for log rho: the mean over elements of d mu z, `[n, A]`."""
        old = batch.model_output[:, k]
        # The shift of the mean, exactly 0 where the model outputs are equal.
        shift = (expand(step.b, old) * (model_output.float() - old.float()))[:, None]
        drawn = batch.x_next[:, k] - step.mean(batch.x[:, k], old)[:, None]  # std z
        std = expand(step.for_actions().std, drawn)
        return (shift * torch.where(std > 0, drawn / std, 0)).flatten(2).mean(dim=2)
