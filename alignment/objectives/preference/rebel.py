"""REBEL: regress the difference of rewards."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from alignment.errors import ConfigError
from alignment.objectives.preference.base import Pairwise


@dataclass(frozen=True)
class REBEL(Pairwise):
    """L = (gain / eta - [r(chosen) - r(rejected)])^2: the change since the pair was sampled explains its rewards.

    The gain, against the behaviour policy that sampled the pair, stands for log rho(chosen) - log rho(rejected). The
    advantage of a pair is its difference of rewards (`source: {type: on_policy_pairs, strength: difference}`). With
    `weights: behaviour` in the source and snapshots.behaviour 0 the copy is the policy of the step before. A pair
    without a preference (a tie, or two samples without a score) has no gradient; the paper holds ties where they are.

    Attributes:
        eta: Step size, > 0, in the units of a mean squared error.

    Source: REBEL (arXiv 2404.16767), eq. 2, with denoising errors for log likelihoods.
    """

    eta: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eta <= 0:
            raise ConfigError(f"objective needs eta > 0, got {self.eta}")

    @property
    def anchor(self) -> str:
        """The policy that sampled."""
        return "behaviour"

    def of_gain(self, gain: Tensor, advantage: Tensor) -> Tensor:
        """Return the squared error of the regression."""
        return (gain / self.eta - advantage).square() * (advantage != 0)
