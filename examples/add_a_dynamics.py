"""Dynamics of your own are one dataclass; this one draws noise only while a sample is more noise than picture.

visalign train quickstart name=early \
        'source.dynamics={type: "examples.add_a_dynamics:EarlyNoise", share: 0.5}'
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from samplers import Step
from samplers.dynamics.base import Dynamics
from samplers.errors import SamplingError
from samplers.paths.grid import Grid


@dataclass(frozen=True)
class EarlyNoise(Dynamics):
    """Draw a share of the noise anew at each step that starts above t = 1/2; below it, take the ODE's step.

    A rectified flow is x = (1 - t) x0 + t eps with v = eps - x0. Keep the predicted picture, x - t v, and of the
    predicted noise, x + (1 - t) v, as much as leaves room for new noise of spread std:
        x' = (1 - s) (x - t v) + r (x + (1 - t) v) + std z      r = sqrt(s^2 - std^2)

    Attributes:
        share: std as a share of s, the time the step goes to; in [0, 1].
    """

    share: float = 0.5
    marginal: ClassVar[bool] = False
    needs_flow: ClassVar[bool] = True
    noise: ClassVar[tuple[str, ...]] = ("share",)

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise SamplingError(f"share must lie in [0, 1], got {self.share}")

    @property
    def stochastic(self) -> bool:
        """Whether share > 0."""
        return self.share > 0

    def step(self, grid: Grid, i: int, j: int) -> Step:
        """Return (a, b, std) of the step from departure i to where step j - 1 arrives."""
        t, s = grid.departures[i][1], grid.arrivals[j - 1][1]
        std = self.share * s if t > 0.5 else 0.0
        r = math.sqrt(s * s - std * std)
        return Step.of(1 - s + r, r * (1 - t) - (1 - s) * t, std)
