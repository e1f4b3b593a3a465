"""Random times for methods that noise clean samples themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

_EDGE = 1e-6
"""Distance kept from 0 and 1, where the quantile of the normal is infinite."""


@dataclass(frozen=True)
class Times:
    """A distribution over t in [low, high], t = 1 being noise.

    Attributes:
        distribution: "uniform"; "logit_normal": sigmoid(mean + std n), as in SD3 training; or "sampler": the times of
            the pipeline's own steps, each with the same chance, the points of a sample at different ones.
        shift: Static shift k t / (1 + (k - 1) t); above 1 it moves times towards noise (median k / (k + 1)).
        low: Smallest time. 0.02 leaves out the first 20 of 1,000 training times, which the authors of Diffusion-DPO and
            Diffusion-KTO draw as well; there hardly anything is left to predict.
        high: Largest time.
        mean: Of the logit-normal.
        std: Of the logit-normal.
    """

    distribution: Literal["uniform", "logit_normal", "sampler"] = "uniform"
    shift: float = 1.0
    low: float = 0.02
    high: float = 1.0
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high <= 1:
            raise ValueError(f"times need 0 < low < high <= 1, got low {self.low} and high {self.high}")
        if self.shift <= 0 or self.std <= 0:
            raise ValueError(f"times need shift > 0 and std > 0, got {self.shift} and {self.std}")
        if self.distribution == "sampler" and self.shift != 1:
            raise ValueError(f"the sampler's own times are shifted already; leave shift out, got {self.shift}")

    def among(self, own: Tensor, u: Tensor, k: int) -> Tensor:
        """Return the time of each row's k-th point, `[n]`, out of the steps' own.

        Args:
            own: Times of the pipeline's steps; those outside [low, high] are left out.
            u: Uniform numbers in [0, 1), `[n]`, the same for all points of a row.
            k: Index of the point.

        Raises:
            ValueError: If none are left.
        """
        own = own[(own >= self.low) & (own <= self.high)]
        if not len(own):
            raise ValueError(f"no step of the sampler lies between times.low {self.low} and times.high {self.high}")
        return own[((u * len(own)).long() + k) % len(own)]

    def __call__(self, u: Tensor) -> Tensor:
        """Return times for uniform numbers `u` in [0, 1), of the same shape, of a distribution of their own."""
        t = u
        if self.distribution == "logit_normal":
            normal = torch.special.ndtri(u.clamp(_EDGE, 1 - _EDGE))
            t = torch.sigmoid(self.mean + self.std * normal)
        t = self.shift * t / (1 + (self.shift - 1) * t)
        return self.low + (self.high - self.low) * t
