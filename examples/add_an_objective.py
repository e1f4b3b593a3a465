"""An objective of your own is one dataclass; this one is the policy gradient without any clip.

visalign train quickstart name=unclipped \
        'objective={type: "examples.add_an_objective:Unclipped", weight: equal}'
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from alignment.objectives.policy_gradient.base import Surrogate


@dataclass(frozen=True)
class Unclipped(Surrogate):
    """L = -mean A rho + kl KL(policy || reference); where rho = 1 its gradient is that of the clipped loss.

    Replaying the trained steps, ratios, step weights, the KL term and the metrics are the family's; a method that
    learns from clean samples or from pairs begins with the base class of that family instead.

    Attributes:
        clip: Beyond it a ratio counts in `clip/fraction`; nothing is cut.
    """

    def of_ratio(self, ratio: Tensor, advantage: Tensor) -> Tensor:
        """Return what is minimised, `[n, A]`."""
        return -advantage * ratio
