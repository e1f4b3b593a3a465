"""Flow-GRPO's SDE: diffusion that grows with the noise level."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from samplers.dynamics.base import Dynamics
from samplers.dynamics.reverse_sde import reverse_sde
from samplers.errors import SamplingError
from samplers.paths.grid import Grid
from samplers.step import Step

_NEAR_ONE = 1 - 1e-2
"""A grid that starts above this t starts at the pole of 1 / (1 - t). Wan's grid starts at .999999 and t / 1000 gives
.999, so testing for t == 1, as the authors' code does, would let a standard deviation of hundreds through."""


@dataclass(frozen=True)
class FlowSDE(Dynamics):
    """Reverse SDE with g(t) = a sqrt(t / (1 - t)).

    At the first step of a grid that starts at t = 1 the denominator takes the time it goes to, 1 - s, while the
    numerator becomes 1: the first standard deviation is then exactly `a`, on every grid.

    Attributes:
        a: Noise level, >= 0; the authors use 0.7 for SD3.5 and FLUX.

    Source: Flow-GRPO (arXiv 2505.05470), eq. 9 and its code (sd3_sde_with_logprob).
    """

    a: float = 0.7
    marginal: ClassVar[bool] = True
    needs_flow: ClassVar[bool] = True
    noise: ClassVar[tuple[str, ...]] = ("a",)

    def __post_init__(self) -> None:
        if not 0 <= self.a < math.inf:
            raise SamplingError(f"a must be >= 0 and finite, got {self.a}")

    @property
    def stochastic(self) -> bool:
        """Whether a > 0."""
        return self.a > 0

    def step(self, grid: Grid, i: int, j: int) -> Step:
        """Return the Euler-Maruyama step with g(t)."""
        t, s = grid.departures[i][1], grid.arrivals[j - 1][1]
        g2 = 1 / (1 - s) if i == 0 and t > _NEAR_ONE else t / (1 - t)
        return reverse_sde(grid, i, j, self.a * math.sqrt(g2))
