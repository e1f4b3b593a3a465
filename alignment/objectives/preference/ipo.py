"""IPO on denoising errors: a preference with a finite target."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from alignment.errors import ConfigError
from alignment.objectives.preference.base import Anchor, Pairwise


@dataclass(frozen=True)
class IPO(Pairwise):
    """L = (beta gain - 1/2)^2: the gain is drawn to 1 / (2 beta), while the logistic loss of DPO has no such end.

    Attributes:
        anchor: What gains are counted from: the "reference"; the "behaviour" copy, a reference that is refreshed as
            `snapshots` says (every so many steps, when a metric grows too large, or as a moving average); or the "ema".
        beta: Strength; the gain aimed at is 1 / (2 beta), in the units of a mean squared error.

    Source: A General Theoretical Paradigm to Understand Learning from Human Preferences (arXiv 2310.12036), eq. 17,
    multiplied by beta^2 so that its size does not depend on beta; with the denoising errors of Diffusion-DPO for log
    likelihoods. A pair weighs |advantage|, and a negative one swaps its sides.
    """

    anchor: Anchor = "reference"
    beta: float = 1000.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta <= 0:
            raise ConfigError(f"objective needs beta > 0, got {self.beta}")

    def of_gain(self, gain: Tensor, advantage: Tensor) -> Tensor:
        """Return the squared distance from the gain aimed at."""
        return advantage.abs() * (self.beta * gain * advantage.sign() - 0.5).square()
