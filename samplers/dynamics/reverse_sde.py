"""The reverse SDE of a rectified flow with the flow's own marginals, by Euler-Maruyama."""

from __future__ import annotations

import math

from samplers.errors import SamplingError
from samplers.paths.grid import Grid
from samplers.step import Step

ON_FLOWS = "it is defined on rectified flows alone; with this pipeline use ddim or coefficient_preserving"


def reverse_sde(grid: Grid, i: int, j: int, g: float) -> Step:
    """Return the step of dx = [v - (g^2 / 2) score] dt + g dW from t to s, with dt = s - t < 0.

    With score = -(x + (1 - t) v) / t:
        mean = x [1 + g^2 dt / (2 t)] + v dt [1 + g^2 (1 - t) / (2 t)]      std = g sqrt(-dt)
    Note that the score holds (1 - t) v; leaving that factor out, as several write-ups do, diverges as steps grow.

    Args:
        grid: A grid on a rectified flow.
        i: Departure.
        j: The step ends where step j - 1 arrives.
        g: Diffusion at t, >= 0.

    Raises:
        SamplingError: If the grid is not on a rectified flow with flow prediction.
    """
    if not grid.flow or grid.prediction != "flow":
        raise SamplingError(ON_FLOWS)
    t, s = grid.departures[i][1], grid.arrivals[j - 1][1]
    dt = s - t
    drift = g * g / (2 * t)
    return Step.of(1 + drift * dt, dt * (1 + drift * (1 - t)), g * math.sqrt(-dt))
