"""Diffusion-DPO: a preference as a difference of denoising errors."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from alignment.errors import ConfigError
from alignment.objectives.preference.base import Anchor, Pairwise, logistic


@dataclass(frozen=True)
class DPO(Pairwise):
    """L = -log sigmoid(beta/2 gain): the error is to fall further on the chosen sample than on the rejected one.

    Attributes:
        anchor: What gains are counted from: the "reference"; the "behaviour" copy, a reference that is refreshed as
            `snapshots` says (every so many steps, when a metric grows too large, or as a moving average); or the "ema".
        beta: Strength. The mean over elements fixes its meaning: a sum over D elements wants beta / D.

    Source: Diffusion-DPO (arXiv 2311.12908), eq. 14, with the constant weight of the authors' code in place of
    T w(lambda). A pair weighs |advantage|, and a negative one swaps its sides. Online DPO's moving or refreshed
    reference is `anchor: behaviour`.
    """

    anchor: Anchor = "reference"
    beta: float = 2000.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta <= 0:
            raise ConfigError(f"objective needs beta > 0, got {self.beta}")

    def of_gain(self, gain: Tensor, advantage: Tensor) -> Tensor:
        """Return the logistic loss."""
        return logistic(gain, advantage, self.beta)
