"""Reward-weighted regression: imitate samples, weighed by their credit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from alignment.errors import ConfigError
from alignment.objectives.forward_process.base import Imitation


@dataclass(frozen=True)
class RWR(Imitation):
    """L = min(exp(A / temperature), limit) e(x0): supervised fine-tuning (`sft`) on samples weighed by their credit.

    At an infinite temperature all weights are equal: fine-tuning on the policy's own samples. ADPO (`adpo`) is
    this minus the policy's own softmax, so that what is learned has no gradient; nothing here holds to a reference.
    Samples of few Euler steps vary less than what the network knows, and imitating them makes the next ones vary less
    again: sample with many steps. Objectives whose credit sums to zero in a group do not suffer from it.

    Attributes:
        temperature: In the units of the credit: 1 is one spread of the rewards under `group_norm` and `batch_norm`.
        limit: Largest weight, so that no single sample dominates an update.

    Source: reward-weighted regression as DDPO (arXiv 2305.13301) has it for diffusion; credit that is already
    normalised stands for its softmax over the step's rewards.
    """

    temperature: float = 1.0
    limit: float = 20.0
    signed: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0 or self.limit <= 0:
            raise ConfigError("objective needs temperature > 0 and limit > 0")

    def weight(self, advantage: Tensor) -> Tensor:
        """Return the exponential of the credit, cut at the limit."""
        return (advantage / self.temperature).exp().clamp(max=self.limit)
