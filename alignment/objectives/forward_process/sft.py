"""Supervised fine-tuning: the denoising loss itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from alignment.objectives.forward_process.base import Imitation


@dataclass(frozen=True)
class SFT(Imitation):
    """L = A e(x0): imitate samples as much as they are wanted.

    With the credit 1 that `source: {type: offline}` gives its winners this is supervised fine-tuning: reward-weighted
    regression (`rwr`) at an infinite temperature, and SePPO without the opponent's sample and its logistic. On centred
    credit of samples of the policy itself it is the policy gradient of the denoising loss, `weighted_matching` at its
    first update.

    Note: a label below 0 pushes away from its sample without bound; KTO (`kto`) has a bound.
    """

    headline: ClassVar[str] = "imitation/error"

    def weight(self, advantage: Tensor) -> Tensor:
        """Return the credit."""
        return advantage
