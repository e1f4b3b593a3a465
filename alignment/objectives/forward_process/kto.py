"""Diffusion-KTO: wanted and unwanted samples, without pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from alignment.data.batches import Samples
from alignment.errors import ConfigError
from alignment.objectives.base import Loss
from alignment.objectives.forward_process.base import Gains, sum_by_group


@dataclass(frozen=True)
class KTO(Gains):
    """L = w (1 - sigmoid(beta y [gain - z])), y = sign(A), z = max(0, mean gain of the group) without gradient.

    Each sample counts as won or lost by itself, against the average gain of the policy: the reference point z of
    prospect theory. The average is over a group: the samples of a prompt, or `source.rows_per_group` records.

    Attributes:
        beta: Strength; the mean over elements fixes its meaning.
        wanted: w of samples with credit above 0, times |A|.
        unwanted: w of samples with credit below 0, times |A|.

    Source: Diffusion-KTO (arXiv 2404.04465) with the sigmoid utility of its code. There z is the mean over the batch of
    one process; over a group it depends on neither processes nor microbatches.
    """

    beta: float = 1000.0
    wanted: float = 1.0
    unwanted: float = 1.0

    headline: ClassVar[str] = "kto/accuracy"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta <= 0 or self.wanted < 0 or self.unwanted < 0:
            raise ConfigError("objective needs beta > 0, wanted >= 0 and unwanted >= 0")

    def of_gains(self, gain: Tensor, batch: Samples, group: Tensor) -> Loss:
        """Return the loss of one noised copy."""
        drift = gain.detach()
        reference = (sum_by_group(drift, group) / sum_by_group(torch.ones_like(drift), group)).clamp(min=0)
        wish = batch.advantage.sign()
        weight = batch.advantage.abs() * torch.where(wish > 0, self.wanted, self.unwanted)
        value = torch.sigmoid(self.beta * wish * (gain - reference))
        metrics = {"kto/reference_point": reference, "kto/accuracy": (drift * wish > 0).float()}
        return Loss(weight * (1 - value), metrics)
