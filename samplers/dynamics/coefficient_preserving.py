"""Flow-CPS: a fixed share of the noise is drawn anew at every step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from samplers.dynamics.base import Dynamics
from samplers.dynamics.renoise import renoise
from samplers.errors import SamplingError
from samplers.paths.grid import Grid
from samplers.step import Step


@dataclass(frozen=True)
class CoefficientPreserving(Dynamics):
    """std = sigma' sin(a pi / 2): the nominal noise level is exact at every step, and the last step has no noise.

    It is not a discretisation of the reverse SDE: for a target with spread it contracts, however many steps
    (`marginal` is False). The authors' code uses -(x' - mu)^2 for the log-probability; here it is the true density, so
    clip ranges tuned there must be divided by 2 std^2.

    Attributes:
        a: Share of noise, in [0, 1]; 0 is the ODE, 1 draws all noise anew.

    Source: Coefficients-Preserving Sampling (arXiv 2509.05952).
    """

    a: float = 0.7
    marginal: ClassVar[bool] = False
    noise: ClassVar[tuple[str, ...]] = ("a",)

    def __post_init__(self) -> None:
        if not 0 <= self.a <= 1:
            raise SamplingError(f"a must lie in [0, 1], got {self.a}")

    @property
    def stochastic(self) -> bool:
        """Whether a > 0."""
        return self.a > 0

    def step(self, grid: Grid, i: int, j: int) -> Step:
        """Return the re-noising step."""
        return renoise(grid, i, j, std=grid.arrivals[j - 1][1] * math.sin(self.a * math.pi / 2))
