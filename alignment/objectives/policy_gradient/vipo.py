"""ViPO: the clipped policy gradient, position by position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from alignment.data.batches import Transitions
from alignment.objectives.kernels.actions import Channels, Ratios
from alignment.objectives.kernels.surrogate import clipped_surrogate
from alignment.objectives.policy_gradient.base import Stepwise, actions
from samplers import Step


@dataclass(frozen=True)
class ViPO(Stepwise):
    """L = mean over positions p of max(-A_p rho_p, -A_p clip(rho_p, 1 - clip, 1 + clip)), with A_p = M_p A.

    rho_p = exp(l_p - l_p_old), with l_p the log density of what the recorded action did to the channels of position p.
    M is the map of `source.structure`. A map of ones is not the scalar method: ratios are clipped each by itself, and
    with "sum" the gradient is that of `clipped_surrogate` times the number of channels.

    Attributes:
        clip: How far a position's ratio may go before its gradient is cut. A position's ratio spreads far more than
            that of a whole latent: where that works with 1e-4, this needs 1e-2 to 5e-2; else all are cut after the
            first update of a rollout.
        channels: What is done with the log densities of a position's channels: their "sum" is the density of all of
            them, and what clip ranges above are for; "mean" makes gradients those of `clipped_surrogate`.

    Source: ViPO (arXiv 2511.18719), eq. 8. Summing channels is public code's choice; the paper leaves it open. That
        code keeps a clip of 1e-4, under which little but the first update of a rollout learns.
    """

    clip: float = 2e-2
    channels: Channels = "sum"
    spatial: ClassVar[bool] = True

    def surrogate(self, step: Step, batch: Transitions, k: int, model_output: Tensor) -> tuple[Tensor, Ratios]:
        """Return the clipped loss, averaged over positions."""
        return clipped_surrogate(model_output, actions(step, batch, k), batch.advantage, self.clip, self.channels)
