"""The clipped policy gradient of DanceGRPO and Flow-GRPO."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from alignment.objectives._surrogate import Surrogate, clipped


@dataclass(frozen=True)
class ClippedSurrogate(Surrogate):
    """L = mean max(-A rho, -A clip(rho, 1 - clip, 1 + clip)) + kl KL(policy || reference).

    Attributes:
        clip: How far a ratio may go before its gradient is cut.

    Source: DanceGRPO (arXiv 2505.07818), eq. 8; Flow-GRPO (arXiv 2505.05470), eq. 5. Their KL weights were tuned for
    flow_grpo's code, whose divergence is |dt| times this one.
    """

    clip: float = 1e-4

    def of_ratio(self, ratio: Tensor, advantage: Tensor) -> Tensor:
        """Return the clipped loss."""
        return clipped(ratio, advantage, self.clip)
