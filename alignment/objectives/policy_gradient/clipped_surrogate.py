"""The clipped policy gradient of DanceGRPO and Flow-GRPO."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from alignment.data.batches import Transitions
from alignment.objectives.kernels.actions import Ratios
from alignment.objectives.kernels.surrogate import clipped_surrogate
from alignment.objectives.policy_gradient.base import Stepwise, actions
from samplers import Step


@dataclass(frozen=True)
class ClippedSurrogate(Stepwise):
    """L = mean max(-A rho, -A clip(rho, 1 - clip, 1 + clip)) + kl KL(policy || reference).

    rho = exp(l - l_old), with l the log density of the recorded action averaged over the latent's elements; clip ranges
    are in those units (for 65,536 elements, 1e-4 allows a summed log ratio of 6.55).

    Attributes:
        clip: How far a ratio may go before its gradient is cut.

    Source: DanceGRPO (arXiv 2505.07818), eq. 8; Flow-GRPO (arXiv 2505.05470), eq. 5; DDPO (arXiv 2305.13301). Papers
    have densities of the whole latent, their codes the mean over it, as here: rho is the papers' to the power 1 / D. KL
    weights were tuned for flow_grpo's code, whose divergence is |dt| times this one. That code takes the unconditional
    half of classifier-free guidance as a constant in training; here the gradient goes through both, as in DanceGRPO,
    since both are the policy.
    """

    clip: float = 1e-4

    def surrogate(self, step: Step, batch: Transitions, k: int, model_output: Tensor) -> tuple[Tensor, Ratios]:
        """Return the clipped loss."""
        return clipped_surrogate(model_output, actions(step, batch, k), batch.advantage, self.clip, "mean")
