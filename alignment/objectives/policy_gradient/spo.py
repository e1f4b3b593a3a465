"""Simple Policy Optimization: a parabola in place of the clip."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from alignment.objectives.policy_gradient.base import Surrogate


@dataclass(frozen=True)
class SPO(Surrogate):
    """L = -mean [A rho - |A| (rho - 1)^2 / (2 clip)] + kl KL(policy || reference).

    At rho = 1 the gradient is the policy gradient; it vanishes at rho = 1 + clip sign(A), and beyond that pulls the
    ratio back, where a clip only stops pulling.

    Attributes:
        clip: Where the pull ends, in the units of rho.

    Source: Simple Policy Optimization (arXiv 2401.16025), eq. 9.
    """

    clip: float = 1e-4

    def of_ratio(self, ratio: Tensor, advantage: Tensor) -> Tensor:
        """Return the parabola."""
        return advantage.abs() * (ratio - 1).square() / (2 * self.clip) - advantage * ratio
