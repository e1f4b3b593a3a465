"""DanceGRPO's SDE: constant diffusion."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from samplers.dynamics.base import Dynamics
from samplers.dynamics.reverse_sde import reverse_sde
from samplers.errors import SamplingError
from samplers.paths.grid import Grid
from samplers.step import Step


@dataclass(frozen=True)
class DanceSDE(Dynamics):
    """Reverse SDE with g = eta.

    Attributes:
        eta: Diffusion, >= 0; the authors use 0.3 (FLUX, SkyReels, Qwen, Wan) and 0.25 (HunyuanVideo).

    Source: DanceGRPO (arXiv 2505.07818), section 3; constants from its training scripts. The authors decode the clean
    prediction of the last step, which equals taking that step without noise: leave the last step out of the window.
    Their scripts have a grid of their own (a static shift of linspace(1, 0, N + 1)) and hand the network whole
    thousandths; here grid and times are the pipeline's, so that training is on those of use.
    """

    eta: float = 0.3
    marginal: ClassVar[bool] = True
    needs_flow: ClassVar[bool] = True
    noise: ClassVar[tuple[str, ...]] = ("eta",)

    def __post_init__(self) -> None:
        if not 0 <= self.eta < math.inf:
            raise SamplingError(f"eta must be >= 0 and finite, got {self.eta}")

    @property
    def stochastic(self) -> bool:
        """Whether eta > 0."""
        return self.eta > 0

    def step(self, grid: Grid, i: int, j: int) -> Step:
        """Return the Euler-Maruyama step with g = eta."""
        return reverse_sde(grid, i, j, self.eta)
